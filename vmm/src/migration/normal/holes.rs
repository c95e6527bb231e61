//! Which parts of a RAM file have no memory: they are zeros, and reading them would allocate it.

use std::fs::File;
use std::ops::Range;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// The holes of a file, as they are found from its start to its end.
#[derive(Debug)]
pub struct Holes<'a> {
    file: Option<&'a File>,
    /// The last data that was found.
    data: Range<u64>,
}

impl<'a> Holes<'a> {
    /// Finds the holes of `file`, whose offset it moves; without a file there are none.
    pub fn of(file: Option<&'a File>) -> Self {
        Self { file, data: 0..0 }
    }

    /// Returns whether there is nothing but a hole at `at`, which is not before the last one.
    pub fn contain(&mut self, at: Range<u64>) -> bool {
        let Some(file) = self.file else { return false };
        if at.start >= self.data.end {
            self.data = match next_data(file, at.start) {
                Ok(data) => data,
                // It can be read in any case.
                Err(errno) => {
                    tracing::warn!(%errno, "ram_holes");
                    self.file = None;
                    return false;
                }
            };
        }
        self.data.start >= at.end
    }
}

/// Returns where the next data is, from `from` on; beyond the end of any file if there is none.
pub fn next_data(file: &File, from: u64) -> Result<Range<u64>, Errno> {
    let start = match lseek(file, from as i64, Whence::SeekData) {
        Ok(start) => start as u64,
        Err(Errno::ENXIO) => return Ok(u64::MAX..u64::MAX),
        Err(errno) => return Err(errno),
    };
    Ok(start..lseek(file, start as i64, Whence::SeekHole)? as u64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const PAGE: u64 = 4096;

    #[test]
    fn only_what_was_written_is_no_hole() {
        let fd = crate::memfd::create(c"holes", nix::sys::memfd::MFdFlags::empty()).unwrap();
        let file = File::from(fd);
        file.set_len(10 * PAGE).unwrap();
        file.write_all_at(&[1], 3 * PAGE).unwrap();
        file.write_all_at(&[1], 6 * PAGE).unwrap();
        let mut holes = Holes::of(Some(&file));
        let found: Vec<bool> =
            (0..5).map(|at| holes.contain(2 * at * PAGE..2 * (at + 1) * PAGE)).collect();
        assert_eq!(found, [true, false, true, false, true]);
        assert!(!Holes::of(None).contain(0..PAGE));
    }
}
