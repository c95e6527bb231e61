//! Room for what an update allocates while the guest stands still: an allocation that fails there
//! would end the process, and the guest with it.

use std::num::NonZeroUsize;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Whatever there is.
const BASE: usize = 2 << 20;
/// For each vCPU: its saved state, several times over while it is encoded.
const PER_VCPU: usize = 128 << 10;

/// There is too little address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an update needs {} KiB of address space to save the guest: mmap: {}; raise RLIMIT_AS",
    .bytes >> 10,
    std::io::Error::from(*.errno)
)]
pub struct NoRoom {
    bytes: usize,
    errno: Errno,
}

/// Whether the address space has room for an update of a guest with `cpus` vCPUs.
pub fn check(cpus: usize) -> Result<(), NoRoom> {
    room(BASE.saturating_add(cpus.saturating_mul(PER_VCPU)))
}

fn room(bytes: usize) -> Result<(), NoRoom> {
    let error = |errno| NoRoom { bytes, errno };
    let length = NonZeroUsize::new(bytes).ok_or(error(Errno::EINVAL))?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice, which nobody can use.
    let mapped = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, flags) };
    // SAFETY: exactly what has just been mapped, and nobody knows of it.
    unsafe { munmap(mapped.map_err(error)?, bytes) }.map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_is_told() {
        assert_eq!(check(1), Ok(()));
        let error = room(1 << 50).unwrap_err();
        insta::assert_snapshot!(error, @"an update needs 1099511627776 KiB of address space to save the guest: mmap: Cannot allocate memory (os error 12); raise RLIMIT_AS");
    }
}
