//! Where QEMU is.

use std::path::{Path, PathBuf};

/// What it is called.
const NAME: &str = "qemu-system-x86_64";
/// Where `ci/install-qemu` puts it, in a working tree.
const INSTALLED: &str = "ci/.qemu/bin";

/// QEMU in a working tree, else in `$PATH`.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(PathBuf::from(INSTALLED)).chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join(NAME)).find(|file| is_executable(file))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}
