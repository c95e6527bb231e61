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

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}
