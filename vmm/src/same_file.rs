//! Whether a path still leads to an open file.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Returns whether `path` leads to the open `file`.
pub fn names(path: &Path, file: &File) -> bool {
    let identity = |meta: std::io::Result<Metadata>| meta.map(|meta| (meta.dev(), meta.ino())).ok();
    let named = identity(std::fs::metadata(path));
    named.is_some() && named == identity(file.metadata())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moved_file_loses_its_old_name() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        let file = File::create(&old).unwrap();
        assert!(names(&old, &file) && !names(&new, &file));
        std::fs::rename(&old, &new).unwrap();
        assert!(!names(&old, &file) && names(&new, &file));
        File::create(&old).unwrap();
        assert!(!names(&old, &file));
    }
}
