//! Splits a set of cases into shards, to run them on several machines.

use std::str::FromStr;

use xxhash_rust::xxh3::xxh3_64;

/// Shard `index` of `of`, counted from 1.
///
/// A case's shard depends only on its name, so adding a case moves no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: u32,
    of: u32,
}

/// An error in the text of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// The text is not two numbers with a slash between them.
    #[error("expected a shard as i/n, such as 1/2")]
    Form,
    /// The index is out of range.
    #[error("there is no shard {index} of {of}: shards are numbered from 1 to {of}")]
    Index {
        /// The index of the shard.
        index: u32,
        /// The number of shards.
        of: u32,
    },
    /// The number of shards is 0.
    #[error("a set cannot be divided into 0 shards")]
    None,
}

impl Shard {
    /// Whether the case of this name belongs to this shard.
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
    fn every_case_is_in_exactly_one_shard(#[values(1, 2, 3, 4, 5, 6, 7)] of: u32) {
        let shards: Vec<Shard> =
            (1..=of).map(|index| format!("{index}/{of}").parse().unwrap()).collect();
        let cases = Set::embedded().unwrap().cases;
        for case in &cases {
            let takers = shards.iter().filter(|shard| shard.takes(&case.name));
            assert_eq!(takers.count(), 1, "{}", case.name);
        }
        // No shard has far more than its share of the cases.
        let fair = cases.len() / of as usize;
        for shard in shards {
            let count = cases.iter().filter(|case| shard.takes(&case.name)).count();
            assert!(count < fair * 3 / 2, "shard {shard} has {count} of {}", cases.len());
        }
    }

    /// A case's shard must be the same in every build of the harness, so that shards fit together.
    #[test]
    fn shard_of_a_case_is_stable() {
        let where_it_is =
            |name: &str| (1..=7).find(|index| Shard { index: *index, of: 7 }.takes(name)).unwrap();
        let names = ["update/running[cpus=1,pages=4k]", "kept/whatever-it-finds", ""];
        assert_eq!(names.map(where_it_is), [2, 5, 5]);
    }

    #[rstest]
    #[case("0/2", "there is no shard 0 of 2: shards are numbered from 1 to 2")]
    #[case("3/2", "there is no shard 3 of 2: shards are numbered from 1 to 2")]
    #[case("1/0", "a set cannot be divided into 0 shards")]
    #[case("x/y", "expected a shard as i/n, such as 1/2")]
    #[case("1", "expected a shard as i/n, such as 1/2")]
    #[case("-1/2", "expected a shard as i/n, such as 1/2")]
    fn rejects_invalid_shard(#[case] text: &str, #[case] why: &str) {
        assert_eq!(text.parse::<Shard>().unwrap_err().to_string(), why);
    }
}
