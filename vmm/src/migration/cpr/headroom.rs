//! Room for what an update needs while the guest stands still: whatever fails there costs it time, at
//! the least.

use std::num::NonZeroUsize;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::resource::{Resource, getrlimit};

use crate::descriptors;

/// Whatever there is.
const BASE: usize = 2 << 20;
/// For each vCPU: its saved state, several times over while it is encoded.
const PER_VCPU: usize = 128 << 10;

/// Descriptors that a VMM opens for a moment while it starts.
const SPARE_FDS: usize = 5;

/// There is too little of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// Address space.
    #[error(
        "an update needs {} KiB of address space to save the guest: mmap: {}; raise RLIMIT_AS",
        .bytes >> 10,
        std::io::Error::from(*.errno)
    )]
    AddressSpace {
        /// Bytes.
        bytes: usize,
        /// Why there are not so many.
        errno: Errno,
    },
    /// Descriptors.
    #[error(
        "an update needs {needed} descriptors for a moment, the limit is {limit}: raise RLIMIT_NOFILE"
    )]
    Descriptors {
        /// How many.
        needed: usize,
        /// The soft limit.
        limit: u64,
    },
}

/// Whether the address space has room for an update of a guest with `cpus` vCPUs.
pub fn address_space(cpus: usize) -> Result<(), NoRoom> {
    room(BASE.saturating_add(cpus.saturating_mul(PER_VCPU)))
}

/// Whether the new process can have a duplicate of each of `handed_over` until the guest runs.
pub fn descriptors(handed_over: usize) -> Result<(), NoRoom> {
    let needed = descriptors::open().len() + handed_over + SPARE_FDS;
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((limit, _)) if limit < needed as u64 => Err(NoRoom::Descriptors { needed, limit }),
        _ => Ok(()),
    }
}

fn room(bytes: usize) -> Result<(), NoRoom> {
    let error = |errno| NoRoom::AddressSpace { bytes, errno };
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
    fn too_few_descriptors_are_told() {
        assert_eq!(descriptors(1), Ok(()));
        let error = descriptors(1 << 40).unwrap_err().to_string();
        assert!(error.contains("raise RLIMIT_NOFILE"), "{error}");
    }

    #[test]
    fn too_little_is_told() {
        assert_eq!(address_space(1), Ok(()));
        let error = room(1 << 50).unwrap_err();
        insta::assert_snapshot!(error, @"an update needs 1099511627776 KiB of address space to save the guest: mmap: Cannot allocate memory (os error 12); raise RLIMIT_AS");
    }
}
