//! RAM of the mock, and other RAM in its place.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Creates a memfd for RAM.
pub fn ram_file(bytes: u64) -> io::Result<OwnedFd> {
    let file = File::from(memfd_create(c"pc.ram", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(bytes)?;
    Ok(file.into())
}

/// Moves RAM to a new file under the same descriptor number.
pub fn copy_ram(ram: &mut OwnedFd) -> io::Result<()> {
    let old = File::from(ram.try_clone()?);
    let copy = ram_file(old.metadata()?.len())?;
    io::copy(&mut &old, &mut &File::from(copy.try_clone()?))?;
    Ok(nix::unistd::dup3(&copy, ram, nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// Moves the last of `parts` equal parts of RAM to other page frames of the same file.
pub fn move_frames(ram: &OwnedFd, parts: u64) -> io::Result<()> {
    let file = File::from(ram.try_clone()?);
    let all = file.metadata()?.len();
    let (bytes, start) = (all / parts, all - all / parts);
    let mut content = vec![0; bytes as usize];
    file.read_exact_at(&mut content, start)?;
    // The old frames are used up, or the new ones might be the same.
    let copy = File::from(ram_file(bytes)?);
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(ram, hole, start as i64, bytes as i64)?;
    copy.write_all_at(&content, 0)?;
    file.write_all_at(&content, start)
}
