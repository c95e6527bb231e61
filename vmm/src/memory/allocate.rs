//! Gives all of a file its place on the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

/// How much is written at once where the file system cannot allocate.
const CHUNK: u64 = 1 << 20;

/// Makes `file` `size` bytes long and allocates all of it; what it has stays as it is. Slow where the file
/// system cannot (ext2, NFS before 4.2): then zeroes are written.
pub(super) fn allocate(file: &File, size: u64) -> io::Result<()> {
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, size as i64) {
            // A termination signal is handled once the VMM runs.
            Err(Errno::EINTR) => {}
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return fill_holes(file, size),
            done => return Ok(done?),
        }
    }
}

/// Writes zeroes where `file` has none, up to `size`.
fn fill_holes(file: &File, size: u64) -> io::Result<()> {
    let zeroes = vec![0; CHUNK as usize];
    let length = file.metadata()?.len();
    let mut at = 0;
    while at < size {
        let hole = match at < length {
            true => lseek(file, at as i64, Whence::SeekHole)? as u64,
            false => at,
        };
        let data = match lseek(file, hole as i64, Whence::SeekData) {
            Ok(data) => data as u64,
            // There is none up to the end, or the end is before it.
            Err(Errno::ENXIO) => size,
            Err(errno) => return Err(errno.into()),
        };
        at = hole;
        while at < data.min(size) {
            let part = &zeroes[..(data.min(size) - at).min(CHUNK) as usize];
            file.write_all_at(part, at)?;
            at += part.len() as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const SIZE: u64 = (3 << 20) + 4096;

    #[test]
    fn holes_are_filled_and_data_stays() {
        let file = tempfile::tempfile().unwrap();
        for at in [0, 1 << 20, (2 << 20) + 8192] {
            file.write_all_at(&[7; 4096], at).unwrap();
        }
        file.set_len(SIZE - 4096).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 < SIZE);
        fill_holes(&file, SIZE).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), SIZE);
        assert!(meta.blocks() * 512 >= SIZE, "{}", meta.blocks());
        let mut content = vec![1; SIZE as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        let sevens = content.iter().filter(|byte| **byte == 7).count();
        assert_eq!(
            (sevens, content.iter().filter(|byte| **byte == 0).count()),
            (3 * 4096, SIZE as usize - 3 * 4096)
        );
        assert_eq!((content[0], content[1 << 20], content[(2 << 20) + 8192]), (7, 7, 7));
    }

    #[test]
    fn new_file_is_written_whole() {
        let file = tempfile::tempfile().unwrap();
        fill_holes(&file, SIZE).unwrap();
        let meta = file.metadata().unwrap();
        assert!(meta.len() == SIZE && meta.blocks() * 512 >= SIZE, "{meta:?}");
    }
}
