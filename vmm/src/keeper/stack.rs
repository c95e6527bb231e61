//! A stack for a child that shares this address space.

use std::ffi::c_void;
use std::ptr;

use nix::errno::Errno;

/// A mapping, unmapped when dropped. No process may use it by then.
#[derive(Debug)]
pub struct Stack {
    at: ptr::NonNull<c_void>,
    bytes: usize,
}

impl Stack {
    /// Maps a stack of `bytes`.
    pub fn map(bytes: usize) -> Result<Self, Errno> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        // SAFETY: a new anonymous mapping, which overlaps nothing.
        let at = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self { at: ptr::NonNull::new(at).ok_or(Errno::ENOMEM)?, bytes })
    }

    /// Returns one past the end, where a stack that grows down begins.
    pub fn top(&self) -> *mut c_void {
        // SAFETY: `bytes` is the length of the mapping.
        unsafe { self.at.as_ptr().byte_add(self.bytes) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this long, and its user has ended.
        unsafe { libc::munmap(self.at.as_ptr(), self.bytes) };
    }
}
