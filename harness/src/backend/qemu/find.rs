//! Finds the QEMU binary.

use std::path::{Path, PathBuf};

/// The name of the binary.
const NAME: &str = "qemu-system-x86_64";
/// The folder in a working tree that `ci/install-qemu` installs it to.
const INSTALLED: &str = "ci/.qemu/bin";

/// Finds QEMU in the working tree, else in `$PATH`.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(PathBuf::from(INSTALLED)).chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join(NAME)).find(|file| is_executable(file))
}

/// Does the same, and also looks in the working tree that this binary was built from.
pub fn find_anywhere() -> Option<PathBuf> {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(INSTALLED).join(NAME);
    find().or_else(|| Some(built()).filter(|file| is_executable(file)))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}
