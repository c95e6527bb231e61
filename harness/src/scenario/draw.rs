//! Draws values from the seed of a case.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Draws a random value from `seed` for one choice of item `number`.
pub(super) fn draw(seed: u64, number: u32, choice: u8) -> u64 {
    xxh3_64_with_seed(&[&number.to_le_bytes()[..], &[choice]].concat(), seed)
}
