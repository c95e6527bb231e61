//! Ioctls that read into plain structures.

use std::os::fd::RawFd;

use nix::errno::Errno;

use super::Values;
use crate::sys;

/// A structure that the kernel may fill with any bytes.
///
/// # Safety
/// Any bytes are a valid value.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($name:ty),* $(,)?) => {
        // SAFETY: it has integers, arrays and unions of such only.
        $(unsafe impl crate::audit::call::Plain for $name {})*
    };
}
pub(super) use plain;

/// Returns an instance of zeros.
pub fn zeroed<T: Plain>() -> T {
    // SAFETY: any bytes are valid.
    unsafe { std::mem::zeroed() }
}

/// Makes the ioctl `request`, which takes a pointer to a `T`, and returns what it fills in.
pub fn get<T: Plain>(fd: RawFd, request: u64, mut value: T) -> Result<T, Errno> {
    // SAFETY: `request` reads and writes a `T` at most, whatever the descriptor is.
    unsafe { sys::ioctl(fd, request, (&raw mut value) as usize)? };
    Ok(value)
}

/// Makes the ioctl `request` with memory of a length that the kernel knows.
pub fn get_words(fd: RawFd, request: u64, words: &mut [u64]) -> Result<(), Errno> {
    // SAFETY: the caller has asked how much the kernel writes, or has told it.
    unsafe { sys::ioctl(fd, request, words.as_mut_ptr() as usize).map(drop) }
}

/// Returns the bytes of a structure.
pub fn bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: they are as long as the reference; the kernel or `zeroed` has set all of them.
    unsafe { std::slice::from_raw_parts((&raw const *value).cast(), size_of::<T>()) }
}

/// Passes on what was read, or notes why it could not be read.
pub fn or_note<T>(values: &mut Values, name: &str, result: Result<T, Errno>) -> Option<T> {
    result.inspect_err(|errno| values.note(name, format_args!("not readable: {errno}"))).ok()
}
