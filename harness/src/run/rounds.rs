//! Cases that are run several times, each time under a name of its own.

use crate::scenario::Case;

/// The cases of a run, in rounds.
#[derive(Clone, Copy)]
pub struct Rounds<'a> {
    /// The cases of each round.
    pub cases: &'a [Case],
    /// Number of rounds.
    pub count: usize,
}

impl Rounds<'_> {
    /// The number of cases in all rounds.
    pub fn total(&self) -> usize {
        self.cases.len().saturating_mul(self.count)
    }

    /// Returns case `number`, counted over all rounds. From the second round on, its name ends with
    /// the round, so that its evidence has a folder of its own; its seed is the same.
    pub fn nth(&self, number: usize) -> Option<Case> {
        let round = number.checked_div(self.cases.len())? + 1;
        let mut case = self.cases[number % self.cases.len()].clone();
        if round > 1 {
            case.name = format!("{}@{round}", case.name);
        }
        (round <= self.count).then_some(case)
    }
}

/// Returns the name of a case without its round.
pub fn without_round(name: &str) -> &str {
    let is_round = |round: &str| !round.is_empty() && round.bytes().all(|c| c.is_ascii_digit());
    match name.rsplit_once('@') {
        Some((case, round)) if is_round(round) => case,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse::parse;

    #[test]
    fn every_round_has_names_of_its_own_and_the_same_seeds() {
        let text = "summary = \"\"\nsteps = [\"boot\", \"quit\"]\nvm = { cpus = \"${cpus}\" }\n[matrix]\ncpus = [1, 2]\n";
        let cases = parse("a.toml", "a/b", text).unwrap();
        let rounds = Rounds { cases: &cases, count: 2 };
        let all: Vec<Case> = (0..9).map_while(|number| rounds.nth(number)).collect();
        let names: Vec<&str> = all.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names, ["a/b[cpus=1]", "a/b[cpus=2]", "a/b[cpus=1]@2", "a/b[cpus=2]@2"]);
        assert_eq!((all.len(), all[1].seed), (rounds.total(), all[3].seed));
        assert!(names.iter().all(|name| cases.iter().any(|c| c.name == without_round(name))));
        assert_eq!(without_round("a/b[mail=x@y]"), "a/b[mail=x@y]");
        assert!(Rounds { cases: &[], count: 2 }.nth(0).is_none());
    }
}
