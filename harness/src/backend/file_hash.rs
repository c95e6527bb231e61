//! A hash of a binary, to distinguish two builds of one version.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};

use xxhash_rust::xxh3::xxh3_64;

/// The identity of a file's content: device, inode, size and ctime in nanoseconds.
type Version = (u64, u64, u64, i64, i64);

static KNOWN: LazyLock<Mutex<HashMap<Version, String>>> = LazyLock::new(Default::default);

/// The XXH3-64 of the file at `path`, as 16 hexadecimal digits. A file is read again only if it
/// has changed.
pub fn of(path: &Path) -> io::Result<String> {
    let meta = path.metadata()?;
    let version = (meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(hash) = known.get(&version) {
        return Ok(hash.clone());
    }
    let hash = format!("{:016x}", xxh3_64(&std::fs::read(path)?));
    known.insert(version, hash.clone());
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_depends_only_on_content() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let (one, copy) = (write("one", "build"), write("copy", "build"));
        let first = of(&one).unwrap();
        assert_eq!(of(&one).unwrap(), first);
        assert_eq!(of(&copy).unwrap(), first);
        write("one", "another build");
        assert_ne!(of(&one).unwrap(), first);
        assert_eq!(of(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
