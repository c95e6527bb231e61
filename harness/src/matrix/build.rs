//! The builds of a matrix and their letters.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use crate::backend::{Backend, file_hash};

/// The most builds in one matrix.
pub const MOST: usize = LETTERS.len();

const LETTERS: [&str; 12] = ["A", "B", "C", "D", "E", "F", "G", "H", "I", "J", "K", "L"];

/// The letter of build `index`.
pub fn letter(index: usize) -> &'static str {
    LETTERS.get(index).copied().unwrap_or("?")
}

/// A build of a VMM.
#[derive(Clone, Serialize)]
pub struct Build {
    /// Its name on the command line.
    pub name: String,
    /// Its own name and version.
    pub title: String,
    /// The file that is executed.
    pub executable: PathBuf,
    /// XXH3-64 of that file.
    pub xxh3: String,
    /// How it is started.
    #[serde(skip)]
    pub backend: Arc<dyn Backend>,
}

impl Build {
    /// The build that `backend` starts.
    pub fn of(name: &str, backend: Arc<dyn Backend>) -> io::Result<Self> {
        let executable = backend.executable().to_owned();
        let xxh3 = file_hash::of(&executable)?;
        Ok(Self { name: name.to_owned(), title: backend.title(), executable, xxh3, backend })
    }
}
