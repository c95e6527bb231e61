//! A set of pages of a RAM block, by their offset in it.

/// Bytes of a page, which is what KVM's dirty log counts.
pub const PAGE: u64 = 4096;
/// A page of zeros.
pub static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// Splits whole pages into runs of zeros and of others, each with whether it is of zeros.
pub fn runs(pages: &[u8]) -> impl Iterator<Item = (bool, &[u8])> {
    let runs = pages.as_chunks().0.chunk_by(|a, b| (*a == ZEROS) == (*b == ZEROS));
    runs.map(|run| (run[0] == ZEROS, run.as_flattened()))
}

/// A set of pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    /// Creates a set of none of the pages of a block of `bytes`.
    pub fn none(bytes: u64) -> Self {
        Self { words: vec![0; bytes.div_ceil(PAGE).div_ceil(64) as usize] }
    }

    /// Creates a set of all pages of a block of `bytes`.
    pub fn all(bytes: u64) -> Self {
        let mut set = Self::none(bytes);
        let pages = bytes.div_ceil(PAGE);
        for (index, word) in (0..).zip(&mut set.words) {
            *word = match pages - index * 64 {
                left @ 0..64 => (1 << left) - 1,
                _ => u64::MAX,
            };
        }
        set
    }

    /// Adds the pages of a region at `offset` in the block, a bit each, as KVM's dirty log has them.
    pub fn add(&mut self, offset: u64, bitmap: &[u64]) {
        let first = (offset / PAGE / 64) as usize;
        debug_assert_eq!(offset % (PAGE * 64), 0);
        for (word, more) in self.words[first..].iter_mut().zip(bitmap) {
            *word |= more;
        }
    }

    /// Adds the pages at `offset`.
    pub fn insert(&mut self, offset: u64, length: u64) {
        for page in offset / PAGE..(offset + length) / PAGE {
            self.words[(page / 64) as usize] |= 1 << (page % 64);
        }
    }

    /// Returns whether the page at `offset` is in the set.
    pub fn contains(&self, offset: u64) -> bool {
        let page = offset / PAGE;
        self.words[(page / 64) as usize] & 1 << (page % 64) != 0
    }

    /// Returns the number of bytes of its pages.
    pub fn bytes(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>() * PAGE
    }

    /// Returns the offset and length of every piece of adjacent pages, in bytes, none longer than
    /// `longest`, which is a multiple of a page.
    pub fn pieces(&self, longest: u64) -> impl Iterator<Item = (u64, u64)> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.next(from, true)?;
            let end = self.next(start, false).unwrap_or(self.words.len() as u64 * 64);
            let end = end.min(start + longest / PAGE);
            from = end;
            Some((start * PAGE, (end - start) * PAGE))
        })
    }

    /// Returns the first page, from `from` on, that is in the set, or that is not.
    fn next(&self, from: u64, wanted: bool) -> Option<u64> {
        let mut word = (from / 64) as usize;
        let mut mask = u64::MAX << (from % 64);
        while let Some(&bits) = self.words.get(word) {
            let found = if wanted { bits } else { !bits } & mask;
            if found != 0 {
                return Some(word as u64 * 64 + u64::from(found.trailing_zeros()));
            }
            (word, mask) = (word + 1, u64::MAX);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pages: &[u64]) -> PageSet {
        let mut set = PageSet::none(256 * PAGE);
        for page in pages {
            set.insert(page * PAGE, PAGE);
            assert!(
                set.contains(page * PAGE) && !set.contains((page ^ 1) * PAGE)
                    || pages.contains(&(page ^ 1))
            );
        }
        set
    }

    fn pieces(set: &PageSet, longest: u64) -> Vec<(u64, u64)> {
        set.pieces(longest * PAGE).map(|(at, length)| (at / PAGE, length / PAGE)).collect()
    }

    #[test]
    fn pages_of_zeros_are_apart_from_others() {
        let page = PAGE as usize;
        let mut pages = vec![0; 5 * page];
        (pages[page], pages[3 * page - 1]) = (1, 1);
        let found: Vec<_> = runs(&pages).map(|(zeros, run)| (zeros, run.len() / page)).collect();
        assert_eq!(found, [(true, 1), (false, 2), (true, 2)]);
    }

    #[test]
    fn adjacent_pages_are_one_piece() {
        let across: Vec<u64> = (60..70).chain([0, 255]).collect();
        assert_eq!(pieces(&set(&across), 100), [(0, 1), (60, 10), (255, 1)]);
        assert_eq!(pieces(&set(&across), 4), [(0, 1), (60, 4), (64, 4), (68, 2), (255, 1)]);
        assert_eq!(pieces(&set(&[]), 4), []);
    }

    #[test]
    fn all_pages_are_those_of_the_block_and_no_more() {
        for pages in [1, 63, 64, 65, 128] {
            let all = PageSet::all(pages * PAGE);
            assert_eq!(all.bytes(), pages * PAGE);
            assert_eq!(pieces(&all, 1000), [(0, pages)]);
        }
    }

    #[test]
    fn pages_of_a_region_are_added_at_its_offset() {
        let mut pages = set(&[1]);
        pages.add(64 * PAGE, &[0b101, 1]);
        assert_eq!(pages, set(&[1, 64, 66, 128]));
        assert_eq!(pages.bytes(), 4 * PAGE);
    }
}
