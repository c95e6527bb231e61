//! Gives all of a file its place on the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// How much is written at once where the file system cannot allocate.
const CHUNK: u64 = 1 << 20;

/// The unit of `st_blocks` (stat(3type)).
const BLOCK: u64 = 512;

/// Makes `file` `size` bytes long and allocates all of it; what it has stays as it is. Slow where the file
/// system cannot (ext2, NFS before 4.2): then all of it is written.
pub(super) fn allocate(file: &File, size: u64) -> io::Result<()> {
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, size as i64) {
            // A termination signal is handled once the VMM runs.
            Err(Errno::EINTR) => {}
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return write_all(file, size),
            done => return Ok(done?),
        }
    }
}

/// Writes all of `file`, which others do not change meanwhile: what it has, then zeroes up to `size`.
fn write_all(file: &File, size: u64) -> io::Result<()> {
    let meta = file.metadata()?;
    if meta.len() >= size && meta.blocks() * BLOCK >= size {
        return Ok(());
    }
    // Without it, a process that is killed meanwhile would leave a file of another size.
    file.set_len(size)?;
    let mut chunk = vec![0; CHUNK as usize];
    let mut at = 0;
    while at < size {
        let part = &mut chunk[..(size - at).min(CHUNK) as usize];
        file.read_exact_at(part, at)?;
        file.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    // Some file systems report only now that there was no room.
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = (3 << 20) + 4096;

    fn allocated(file: &File) -> bool {
        let meta = file.metadata().unwrap();
        meta.len() == SIZE && meta.blocks() * BLOCK >= SIZE
    }

    #[test]
    fn holes_are_filled_and_data_stays() {
        let file = tempfile::tempfile().unwrap();
        let data = [0, 1 << 20, (2 << 20) + 8192];
        for at in data {
            file.write_all_at(&[7; 4096], at).unwrap();
        }
        file.set_len(SIZE - 4096).unwrap();
        assert!(!allocated(&file));
        write_all(&file, SIZE).unwrap();
        assert!(allocated(&file));
        let mut wanted = vec![0; SIZE as usize];
        data.into_iter().for_each(|at| wanted[at as usize..][..4096].fill(7));
        let mut content = vec![1; SIZE as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        assert!(content == wanted);
    }

    #[test]
    fn a_new_file_is_written_whole() {
        let file = tempfile::tempfile().unwrap();
        write_all(&file, SIZE).unwrap();
        assert!(allocated(&file));
        // All there: nothing is written.
        let before = file.metadata().unwrap().modified().unwrap();
        write_all(&file, SIZE).unwrap();
        assert_eq!(file.metadata().unwrap().modified().unwrap(), before);
    }
}
