//! One of several parts of a set of cases, for as many machines.

use std::str::FromStr;

use xxhash_rust::xxh3::xxh3_64;

/// Part `index` of `of`, counted from 1.
///
/// A case's name alone says where it belongs, so a new case moves no other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: u32,
    of: u32,
}

/// Why something is no shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// It is no two numbers.
    #[error("a shard is i/n, such as 1/2")]
    Form,
    /// There is no such part.
    #[error("there is no shard {index} of {of}: they are counted from 1 to {of}")]
    Index {
        /// The part.
        index: u32,
        /// Of so many.
        of: u32,
    },
    /// There are no parts at all.
    #[error("a set cannot be divided into 0 shards")]
    None,
}

impl Shard {
    /// True if the case of this name is in it.
    pub fn takes(self, case: &str) -> bool {
        xxh3_64(case.as_bytes()) % u64::from(self.of) == u64::from(self.index - 1)
    }
}

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        let number = |text: &str| text.parse().map_err(|_| ShardError::Form);
        let (index, of) = text.split_once('/').ok_or(ShardError::Form)?;
        match (number(index)?, number(of)?) {
            (_, 0) => Err(ShardError::None),
            (index, of) if index == 0 || index > of => Err(ShardError::Index { index, of }),
            (index, of) => Ok(Self { index, of }),
        }
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::scenario::set::Set;

    #[rstest]
    fn every_case_is_in_exactly_one(#[values(1, 2, 3, 4, 5, 6, 7)] of: u32) {
        let shards: Vec<Shard> =
            (1..=of).map(|index| format!("{index}/{of}").parse().unwrap()).collect();
        let cases = Set::embedded().unwrap().cases;
        for case in &cases {
            let takers = shards.iter().filter(|shard| shard.takes(&case.name));
            assert_eq!(takers.count(), 1, "{}", case.name);
        }
        // None has far more to do than its part.
        let fair = cases.len() / of as usize;
        for shard in shards {
            let count = cases.iter().filter(|case| shard.takes(&case.name)).count();
            assert!(count < fair * 3 / 2, "shard {shard} has {count} of {}", cases.len());
        }
    }

    /// Where a case belongs is a promise: shards of two builds of the harness fit together.
    #[test]
    fn a_case_stays_where_it_is() {
        let where_it_is =
            |name: &str| (1..=7).find(|index| Shard { index: *index, of: 7 }.takes(name)).unwrap();
        let names = ["update/running[cpus=1,pages=4k]", "kept/whatever-it-finds", ""];
        assert_eq!(names.map(where_it_is), [2, 5, 5]);
    }

    #[rstest]
    #[case("0/2", "there is no shard 0 of 2: they are counted from 1 to 2")]
    #[case("3/2", "there is no shard 3 of 2: they are counted from 1 to 2")]
    #[case("1/0", "a set cannot be divided into 0 shards")]
    #[case("x/y", "a shard is i/n, such as 1/2")]
    #[case("1", "a shard is i/n, such as 1/2")]
    #[case("-1/2", "a shard is i/n, such as 1/2")]
    fn what_is_no_shard_is_told(#[case] text: &str, #[case] why: &str) {
        assert_eq!(text.parse::<Shard>().unwrap_err().to_string(), why);
    }
}
