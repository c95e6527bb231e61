//! The words that a guest fills a page with: they are cheap to compute, differ everywhere, and
//! encode their origin.
//!
//! Word i of a page is a hash of (seed, page number, generation), plus i times an odd constant.
//! The hash is invertible, so a word in a wrong place reveals its right one.
//!
//! Also compiled on the host, for tests.

/// Words in a page.
pub const WORDS: usize = 512;

/// The difference between consecutive words.
pub const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bits of a page number; the remaining bits of a word hold its generation.
const PAGE_BITS: u32 = 28;

const FACTOR_1: u64 = 0xbf58_476d_1ce4_e5b9;
const FACTOR_2: u64 = 0x94d0_49bb_1331_11eb;

/// The words of one seed.
#[derive(Clone, Copy)]
pub struct Words {
    key: u64,
}

impl Words {
    /// The words of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { key: mix(seed ^ STEP) }
    }

    /// Word 0 of the page at `address`, in this generation.
    pub fn first(self, address: u64, generation: u64) -> u64 {
        mix((address >> 12 | generation << PAGE_BITS) ^ self.key)
    }

    /// The page address and generation whose word `index` this is; meaningless for other words.
    pub fn origin(self, word: u64, index: usize) -> (u64, u64) {
        let both = unmix(word.wrapping_sub(STEP.wrapping_mul(index as u64))) ^ self.key;
        ((both & ((1 << PAGE_BITS) - 1)) << 12, both >> PAGE_BITS)
    }
}

/// The mixing function of Splitmix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(FACTOR_1);
    x = (x ^ (x >> 27)).wrapping_mul(FACTOR_2);
    x ^ (x >> 31)
}

/// The inverse of [`mix`].
fn unmix(mut x: u64) -> u64 {
    x = unshift(x, 31).wrapping_mul(inverse(FACTOR_2));
    x = unshift(x, 27).wrapping_mul(inverse(FACTOR_1));
    unshift(x, 30)
}

/// The inverse of `x ^ (x >> shift)`, for shifts of a third of the word or more.
fn unshift(x: u64, shift: u32) -> u64 {
    x ^ (x >> shift) ^ (x >> (2 * shift))
}

/// The inverse of an odd number modulo 2^64: each Newton step doubles the number of correct bits.
const fn inverse(odd: u64) -> u64 {
    let mut x = odd;
    let mut right = 3;
    while right < 64 {
        x = x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
        right *= 2;
    }
    x
}
