//! The agent's own options on the kernel's command line; `options` has those of all guests.

use std::time::Duration;

use thiserror::Error;

use crate::options::{Options, size};

/// What to run, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The options of every guest.
    pub common: Options,
    /// `agent.memory=SIZE`: how much memory to check.
    pub memory: u64,
    /// `agent.rest=MICROSECONDS`: how long each thread sleeps between two rounds.
    pub rest: Duration,
    /// `agent.log=boot`: the kernel's whole log is judged, not only what follows the first update.
    pub whole_log: bool,
}

/// An invalid option.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LoadError {
    /// Of all guests.
    #[error("{0}")]
    Common(&'static str),
    /// Of the agent.
    #[error("command line: {word} is invalid: {expected}")]
    Word {
        /// The option with its value.
        word: String,
        /// What it takes.
        expected: &'static str,
    },
}

impl Load {
    /// Parses the kernel's command line.
    pub fn parse(line: &str) -> Result<Self, LoadError> {
        let mut load = Self {
            common: Options::parse(line.as_bytes()).map_err(LoadError::Common)?,
            memory: 2 << 20,
            rest: Duration::from_millis(4),
            whole_log: false,
        };
        for word in line.split_ascii_whitespace() {
            let Some((key, value)) = word.split_once('=') else { continue };
            let wrong = |expected| LoadError::Word { word: word.to_owned(), expected };
            match key {
                "agent.memory" => {
                    let memory = size(value.as_bytes()).filter(|memory| *memory >= 1 << 20);
                    load.memory = memory.ok_or_else(|| wrong("1M or more"))?;
                }
                "agent.rest" => {
                    let rest = value.parse().ok().filter(|rest| (1..=1_000_000).contains(rest));
                    let rest = rest.ok_or_else(|| wrong("1 to 1000000 microseconds"))?;
                    load.rest = Duration::from_micros(rest);
                }
                "agent.log" => {
                    load.whole_log = match value {
                        "boot" => true,
                        "updates" => false,
                        _ => return Err(wrong("boot or updates")),
                    };
                }
                _ => {}
            }
        }
        Ok(load)
    }

    /// Whether the command line selects this part of the agent; without `test=` it selects all.
    pub fn wants(&self, part: &str) -> bool {
        let wanted = self.common.test.as_str();
        wanted.is_empty() || wanted == part
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn options_of_kernel_and_agent_share_a_line() {
        let load = Load::parse("quiet memmap=4K$0x20000 cpus=2 agent.rest=500 agent.log=boot\n");
        let load = load.unwrap();
        assert_eq!((load.common.cpus, load.rest.as_micros(), load.whole_log), (2, 500, true));
        assert_eq!(load.memory, 2 << 20);
        let one = Load::parse("test=fpu agent.memory=4M").unwrap();
        assert_eq!((one.wants("fpu"), one.wants("memory"), one.memory), (true, false, 4 << 20));
    }

    #[rstest]
    #[case("cpus=9", "command line: cpus= takes 1 to 8")]
    #[case("agent.rest=0", "command line: agent.rest=0 is invalid: 1 to 1000000 microseconds")]
    #[case("agent.memory=lots", "command line: agent.memory=lots is invalid: 1M or more")]
    #[case("agent.log=all", "command line: agent.log=all is invalid: boot or updates")]
    fn invalid_values_are_named(#[case] line: &str, #[case] error: &str) {
        assert_eq!(Load::parse(line).unwrap_err().to_string(), error);
    }
}
