//! The VMM inside the harness: a binary that runs scenarios starts its VMMs from itself.
//!
//! Thus a stale VMM is never tested, and neither `cargo run` nor `cargo test` needs a second build.

use std::path::PathBuf;

/// First argument that makes the binary the VMM.
pub const VMM: &str = "vmm";
/// First argument that makes the binary the mock VMM.
pub const MOCK_VMM: &str = "mock-vmm";
/// First argument that makes the binary a wrapper of a VMM.
pub const RESTRICTED: &str = "lowered";

/// The path of the running binary, with symbolic links resolved, because an update needs a path
/// that stays valid.
pub fn own_binary() -> std::io::Result<PathBuf> {
    std::fs::read_link("/proc/self/exe")
}
