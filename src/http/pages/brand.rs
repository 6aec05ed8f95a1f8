//! What the pages look like: a name, a logo, one colour, and the style sheet made with it.
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use sha2::{Digest as _, Sha256};

use crate::config::{Color, PagesConfig};

/// Bytes of a logo: it is fetched once, but by everybody.
const LOGO_LIMIT: u64 = 64 * 1024;
const STYLE: &str = include_str!("style.css");
/// What text stands on, as the style sheet has it.
const LIGHT: [Color; 2] = [Color::WHITE, Color([0xf6, 0xf8, 0xfa])];
const DARK: [Color; 2] = [Color([0x16, 0x1b, 0x22]), Color([0x0d, 0x11, 0x17])];

/// Why the pages can't look as configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrandError {
    #[error("{}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} is larger than {} KiB", .0.display(), LOGO_LIMIT / 1024)]
    TooLarge(PathBuf),
    #[error("{} is neither an SVG nor a PNG image", .0.display())]
    Unknown(PathBuf),
}

/// What the pages look like.
#[derive(Clone, Debug)]
pub(crate) struct Brand {
    pub(super) name: String,
    pub(super) style: Asset,
    /// The logo, or the name's first letter.
    pub(super) icon: Asset,
}

impl Brand {
    /// Reads the logo and makes the style sheet.
    ///
    /// # Errors
    ///
    /// The logo can't be read, is too large or is no image.
    pub(crate) fn open(config: &PagesConfig) -> Result<Self, BrandError> {
        let icon = match &config.brand_logo {
            Some(path) => logo(path)?,
            None => letter(&config.brand_name, config.brand_color),
        };
        let style = Asset::new("css", "text/css; charset=utf-8", style(config.brand_color).into());
        Ok(Self { name: config.brand_name.clone(), style, icon })
    }
}

/// A file that never changes: its name holds its hash, so browsers may keep it for ever.
#[derive(Clone, Debug)]
pub(super) struct Asset {
    pub(super) path: String,
    kind: HeaderValue,
    content: Bytes,
}

impl Asset {
    fn new(extension: &str, kind: &'static str, content: Bytes) -> Self {
        let path = format!("/assets/{}.{extension}", hex::encode(&Sha256::digest(&content)[..8]));
        Self { path, kind: HeaderValue::from_static(kind), content }
    }

    pub(super) fn answer(self) -> Response {
        let headers = [
            (CONTENT_TYPE, self.kind),
            (CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable")),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            // An SVG image that somebody opens by itself is a document. Its scripts must not run as ours.
            (
                CONTENT_SECURITY_POLICY,
                HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; sandbox"),
            ),
        ];
        (headers, self.content).into_response()
    }
}

fn style(color: Color) -> String {
    STYLE
        .replace("BRAND-ON-LIGHT", &color.readable_on(&LIGHT).to_string())
        .replace("BRAND-ON-DARK", &color.readable_on(&DARK).to_string())
}

fn logo(path: &Path) -> Result<Asset, BrandError> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LOGO_LIMIT + 1).read_to_end(&mut content))
        .map_err(|source| BrandError::Unreadable { path: path.to_owned(), source })?;
    if content.len() as u64 > LOGO_LIMIT {
        return Err(BrandError::TooLarge(path.to_owned()));
    }
    let is_svg = std::str::from_utf8(&content).is_ok_and(|text| text.contains("<svg"));
    match &content[..] {
        [b'\x89', b'P', b'N', b'G', b'\r', b'\n', b'\x1a', b'\n', ..] => {
            Ok(Asset::new("png", "image/png", content.into()))
        }
        _ if is_svg => Ok(Asset::new("svg", "image/svg+xml", content.into())),
        _ => Err(BrandError::Unknown(path.to_owned())),
    }
}

/// The name's first letter on a square of the colour.
fn letter(name: &str, color: Color) -> Asset {
    let color = color.readable_on(&LIGHT);
    let letter = name.chars().find(|c| c.is_alphanumeric()).map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    let image = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 32 32\"><rect width=\"32\" height=\"32\" rx=\"7\" \
         fill=\"{color}\"/><text x=\"16\" y=\"23\" font-family=\"system-ui,sans-serif\" font-size=\"20\" \
         font-weight=\"700\" text-anchor=\"middle\" fill=\"#fff\">{letter}</text></svg>"
    );
    Asset::new("svg", "image/svg+xml", image.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_style_sheet_has_the_backgrounds_that_colors_are_made_for() {
        let [light, dark] = [LIGHT, DARK].map(|backgrounds| {
            let [card, back] = backgrounds.map(|color| color.to_string());
            format!("--back: {back}; --card: {card};")
        });
        let text = style(Color([0x0b, 0x5c, 0xad]));
        assert!(text.contains(&light.replace("#ffffff", "#fff")) && text.contains(&dark), "{text}");
        assert!(text.contains("--accent: #0b5cad; --on-accent: #fff;") && !text.contains("BRAND"), "{text}");
    }

    #[test]
    fn a_logo_is_known_by_its_content_and_is_small() {
        let directory = tempfile::tempdir().expect("a directory");
        let open = |content: &[u8]| {
            let path = directory.path().join("logo");
            std::fs::write(&path, content).expect("a file");
            logo(&path).map(|asset| asset.kind.to_str().expect("ASCII").to_owned()).map_err(|error| error.to_string())
        };
        assert_eq!(open(b"<?xml version=\"1.0\"?><svg/>").as_deref(), Ok("image/svg+xml"));
        assert_eq!(open(b"\x89PNG\r\n\x1a\nrest").as_deref(), Ok("image/png"));
        for wrong in [&b"GIF89a"[..], b"", b"<html>", b"\xff<svg"] {
            assert!(open(wrong).is_err_and(|error| error.ends_with("is neither an SVG nor a PNG image")), "{wrong:?}");
        }
        assert!(open(&vec![b'x'; 65 * 1024]).is_err_and(|error| error.ends_with("is larger than 64 KiB")));
        assert!(logo(&directory.path().join("absent")).is_err_and(|error| error.to_string().contains("absent: No")));
    }

    #[test]
    fn the_letter_is_one_of_the_name_and_never_markup() {
        let drawn = |name: &str| String::from_utf8(letter(name, Color::BLACK).content.to_vec()).expect("UTF-8");
        assert!(drawn("example").contains(">E</text>") && drawn("<&ß").contains(">SS</text>"));
        assert!(drawn("<>&").contains("></text>"));
    }
}
