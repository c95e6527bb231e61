//! Checks for the resources that an update needs while the guest is paused: a shortage there would
//! at least prolong the pause.

use std::num::NonZeroUsize;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::resource::{Resource, getrlimit};

use crate::descriptors;

/// Address space that any update needs, in bytes.
const BASE: usize = 2 << 20;
/// Address space for each vCPU, in bytes: its saved state exists several times while it is encoded.
const PER_VCPU: usize = 128 << 10;

/// Descriptors that a VMM opens briefly while it starts.
const SPARE_FDS: usize = 5;

/// Errors from a resource that is too small for an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// The address space is too small.
    #[error(
        "an update needs {} KiB of address space to save the guest: mmap: {}; raise RLIMIT_AS",
        .bytes >> 10,
        std::io::Error::from(*.errno)
    )]
    AddressSpace {
        /// Bytes needed.
        bytes: usize,
        /// The cause.
        errno: Errno,
    },
    /// The limit on descriptors is too low.
    #[error(
        "an update briefly needs {needed} descriptors, the limit is {limit}: raise RLIMIT_NOFILE"
    )]
    Descriptors {
        /// Descriptors needed.
        needed: usize,
        /// The soft limit.
        limit: u64,
    },
}

/// Checks that the address space has room for an update of a guest with `cpus` vCPUs.
pub fn address_space(cpus: usize) -> Result<(), NoRoom> {
    room(BASE.saturating_add(cpus.saturating_mul(PER_VCPU)))
}

/// Checks that the new process can hold a duplicate of each of `handed_over` descriptors until the
/// guest runs.
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
    // SAFETY: a new mapping at an address the kernel chooses, which nothing uses.
    let mapped = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_NONE, flags) };
    // SAFETY: exactly what has just been mapped, and nothing else refers to it.
    unsafe { munmap(mapped.map_err(error)?, bytes) }.map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_too_few_descriptors() {
        assert_eq!(descriptors(1), Ok(()));
        let error = descriptors(1 << 40).unwrap_err().to_string();
        assert!(error.contains("raise RLIMIT_NOFILE"), "{error}");
    }

    #[test]
    fn rejects_too_little_address_space() {
        assert_eq!(address_space(1), Ok(()));
        let error = room(1 << 50).unwrap_err();
        insta::assert_snapshot!(error, @"an update needs 1099511627776 KiB of address space to save the guest: mmap: Cannot allocate memory (os error 12); raise RLIMIT_AS");
    }
}
