//! Splits Markdown into the parts that can be checked.
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// One Markdown file, in parts.
pub(super) struct Document {
    pub(super) path: PathBuf,
    /// The anchors that GitHub makes from headings.
    pub(super) anchors: Vec<String>,
    pub(super) links: Vec<String>,
    /// Code spans, and lines of code blocks. Lines that a backslash or an open bracket continues are joined.
    pub(super) code: Vec<String>,
    /// All text, including code.
    pub(super) text: String,
}

impl Document {
    pub(super) fn read(path: PathBuf) -> Self {
        let source = super::read(&path);
        let mut document = Self { path, anchors: Vec::new(), links: Vec::new(), code: Vec::new(), text: String::new() };
        let (mut heading, mut block) = (None::<String>, None::<String>);
        for event in Parser::new_ext(&source, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    document.anchors.push(anchor(&heading.take().expect("a heading has begun")));
                }
                Event::Start(Tag::Link { dest_url, .. }) => document.links.push(dest_url.into_string()),
                Event::Start(Tag::CodeBlock(_)) => block = Some(String::new()),
                Event::End(TagEnd::CodeBlock) => {
                    let lines = block.take().expect("a block has begun").replace("\\\n", " ");
                    document.code.extend(lines.lines().map(str::to_owned));
                }
                Event::Text(text) | Event::Code(text) if heading.is_some() => {
                    heading.as_mut().expect("just looked").push_str(&text);
                    document.text += &text;
                }
                Event::Text(text) => {
                    if let Some(block) = &mut block {
                        block.push_str(&text);
                    }
                    document.text += &text;
                }
                Event::Code(text) => {
                    write!(document.text, " {text} ").expect("writing to memory");
                    document.code.push(text.into_string());
                }
                _ => document.text.push('\n'),
            }
        }
        document
    }

    /// Whether it describes the present. A changelog names things that are gone.
    pub(super) fn is_current(&self) -> bool {
        self.path != Path::new("CHANGELOG.md")
    }

    /// The words of each piece of code.
    pub(super) fn commands(&self) -> impl Iterator<Item = Vec<&str>> {
        let end = |word: &&str| !word.starts_with('#');
        self.code.iter().map(move |line| line.split_whitespace().take_while(end).map(bare).collect())
    }
}

/// GitHub's name for a heading: lower case, punctuation dropped, hyphens for spaces.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c)).collect::<String>().replace(' ', "-")
}

/// A word without the punctuation around it in a sentence or a shell command.
pub(super) fn bare(word: &str) -> &str {
    word.trim_start_matches(['(', '"', '\'', '[', '`', '$'])
        .trim_end_matches([')', '"', '\'', ']', '`', ',', ';', ':', '.'])
}
