//! The word of a person before what cannot be undone.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use crate::cutover::{CutoverError, Result};

/// Asks on the terminal for a word; without a terminal nobody is there to give it.
pub(super) fn confirm(question: &str, word: &str) -> Result<()> {
    let refused =
        || CutoverError::refused("not confirmed").with_hint("Run it on a terminal and confirm there, or give --yes.");
    if !io::stdin().is_terminal() {
        return Err(refused());
    }
    let mut stderr = io::stderr().lock();
    let _ = write!(stderr, "{question}\nType {word} to go on: ");
    let _ = stderr.flush();
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(|_| refused())?;
    if line.trim() == word { Ok(()) } else { Err(refused()) }
}
