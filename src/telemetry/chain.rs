//! Formats errors for the log and the terminal.
use std::error::Error;

/// An error and its causes, outermost first. A cause that the error's own message already names isn't repeated.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("the file can't be read")]
        Silent(#[source] Inner),
        #[error("the file can't be read: {0}")]
        Telling(#[source] Inner),
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the disk failed")]
    struct Inner(#[source] io::Error);

    #[test]
    fn every_cause_is_said_once() {
        let inner = || Inner(io::Error::other("no such sector"));
        for error in [Outer::Silent(inner()), Outer::Telling(inner())] {
            assert_eq!(chain(&error), "the file can't be read: the disk failed: no such sector");
        }
    }
}
