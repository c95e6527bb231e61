//! Parses a scenario file into its cases.

use schemars::JsonSchema;
use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

use super::ScenarioError;
use super::case::Case;
use super::expansion::expand;
use super::matrix::{self, Matrix};
use super::mistake::Mistake;
use super::step::{Repeat, Step};
use super::tree::{self, Part, Tree};
use super::validate::{self, Placed};
use super::vm::Vm;

/// The time limit of a case, in milliseconds, unless the scenario sets another.
const DEADLINE_MS: u64 = 60_000;

/// A scenario file with the placeholders of its matrix already replaced.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(title = "A scenario of cpr-harness")]
pub(super) struct File {
    /// What the scenario shows, in one line.
    summary: String,
    /// The virtual machine.
    #[serde(default)]
    vm: Vm,
    /// The steps, in order; the first is "boot".
    steps: Vec<Step>,
    /// The guest's seed [default: derived from the case's name].
    seed: Option<u64>,
    /// The number of milliseconds after which the watchdog ends the case [default: 60000].
    #[serde(rename = "time-limit-ms")]
    deadline_ms: Option<u64>,
    /// The longest blackout of a successful update, in milliseconds [default: 2000, or 20 times the
    /// largest gap between two heartbeats in a calm period of the same run, if that is more].
    max_blackout_ms: Option<u64>,
    /// Whether the scenario runs only when a filter or a file names it.
    #[serde(default)]
    on_request: bool,
    /// Values for "${key}" in the file; each combination of values is one case.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, Vec<super::schema_parts::Scalar>>")]
    #[allow(dead_code, reason = "`matrix` takes it out before; here it is only for the schema")]
    matrix: toml::Table,
}

/// Parses the cases of scenario `name` (`theme/scenario`) from the `text` of `file`.
pub fn parse(file: &str, name: &str, text: &str) -> Result<Vec<Case>, ScenarioError> {
    let wrong = |mistakes| ScenarioError::mistakes(file, text, mistakes);
    let mut tree = tree::parse(text).map_err(wrong)?;
    let (matrix, mut mistakes) = Matrix::take(&mut tree);
    mistakes.extend(matrix.placeholders(&tree, text));
    if !mistakes.is_empty() {
        // Without its values, what a placeholder stands for cannot be judged.
        let others = tree::read::<File>(tree).err().unwrap_or_default();
        let of_text = |mistake: &Mistake| {
            let at = mistake.at.clone().and_then(|at| text.get(at));
            !at.is_some_and(|text| text.contains("${"))
        };
        mistakes.extend(others.into_iter().filter(of_text));
        return Err(wrong(mistakes));
    }
    let choices = matrix.choices();
    let mut found = Found::default();
    let mut cases = Vec::new();
    for choice in &choices {
        let mut tree = tree.clone();
        let twice = matrix::substitute(tree.get_mut(), choice);
        let suffix = matrix::suffix(choice);
        if !twice.is_empty() {
            found.add(twice, &suffix);
            continue;
        }
        match case(&format!("{name}{suffix}"), tree) {
            Ok(case) => cases.push(case),
            Err(mistakes) => found.add(mistakes, &suffix),
        }
    }
    let mistakes = found.told(choices.len());
    if mistakes.is_empty() { Ok(cases) } else { Err(wrong(mistakes)) }
}

/// Reads one case.
fn case(name: &str, tree: Tree<'_>) -> Result<Case, Vec<Mistake>> {
    let scenario: File = tree::read(tree.clone())?;
    let too_often = validate::repetitions(&scenario.steps);
    if !too_often.is_empty() {
        return Err(placed(&tree, too_often));
    }
    let (paths, steps): (Vec<_>, Vec<_>) =
        expanded(scenario.steps, &[Part::Key("steps")]).into_iter().unzip();
    let case = Case {
        // Masked, because TOML's integers are signed.
        seed: scenario.seed.unwrap_or_else(|| xxh3_64(name.as_bytes()) >> 1),
        name: name.to_owned(),
        summary: scenario.summary,
        deadline_ms: scenario.deadline_ms.unwrap_or(DEADLINE_MS),
        max_blackout_ms: scenario.max_blackout_ms,
        on_request: scenario.on_request,
        steps,
        vm: scenario.vm,
    };
    checked(case, &paths, &tree)
}

fn checked(case: Case, paths: &[Vec<Part>], tree: &Tree<'_>) -> Result<Case, Vec<Mistake>> {
    let wrong = validate::check(&case, paths);
    if wrong.is_empty() { Ok(case) } else { Err(placed(tree, wrong)) }
}

fn placed(tree: &Tree<'_>, wrong: Vec<Placed>) -> Vec<Mistake> {
    let place = |Placed { path, mistake }: Placed| mistake.at(tree::place(tree, &path));
    wrong.into_iter().map(place).collect()
}

/// Expands the steps in the list at `list`, each with the path of the step in the file.
fn expanded(steps: Vec<Step>, list: &[Part]) -> Vec<(Vec<Part>, Step)> {
    let mut all = Vec::new();
    for (index, step) in steps.into_iter().enumerate() {
        let path = [list, &[Part::Element(index)]].concat();
        match step {
            Step::Repeat(Repeat { times, steps }) => {
                let list = [&*path, &[Part::Only, Part::Key("steps")]].concat();
                let round = expanded(steps, &list);
                all.extend(std::iter::repeat_n(round, times as usize).flatten());
            }
            step => all.extend(expand(vec![step]).into_iter().map(|step| (path.clone(), step))),
        }
    }
    all
}

/// Parses one expanded case, as stored in an evidence folder.
pub fn parse_case(file: &str, text: &str) -> Result<Case, ScenarioError> {
    let parsed = tree::parse(text).and_then(|tree| {
        let case: Case = tree::read(tree.clone())?;
        let path = |index| vec![Part::Key("steps"), Part::Element(index)];
        let paths: Vec<Vec<Part>> = (0..case.steps.len()).map(path).collect();
        checked(case, &paths, &tree)
    });
    parsed.map_err(|mistakes| ScenarioError::mistakes(file, text, mistakes))
}

/// What is wrong in the cases of a file, each with the cases in which it is.
#[derive(Default)]
struct Found(Vec<(Mistake, Vec<String>)>);

impl Found {
    fn add(&mut self, mistakes: Vec<Mistake>, suffix: &str) {
        for mistake in mistakes {
            let same = self.0.iter_mut().find(|(known, _)| *known == mistake);
            match same {
                // A step that stands for several can have the same error several times.
                Some((_, cases)) if cases.last().is_some_and(|last| last == suffix) => {}
                Some((_, cases)) => cases.push(suffix.to_owned()),
                None => self.0.push((mistake, vec![suffix.to_owned()])),
            }
        }
    }

    /// All mistakes; those that are not in all of `count` cases name theirs.
    fn told(self, count: usize) -> Vec<Mistake> {
        let tell = |(mistake, cases): (Mistake, Vec<String>)| match cases.as_slice() {
            all if all.len() == count => mistake,
            [only] => mistake.note(format!("only in the case {only}")),
            [first, others @ ..] => {
                mistake.note(format!("in {} of {count} cases: {first}, …", others.len() + 1))
            }
            [] => mistake,
        };
        self.0.into_iter().map(tell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const GOOD: &str = r#"
summary = "a running guest"
vm = { guest = "pattern", cpus = "${cpus}", pages = "${pages}", memory = "128M", own-binary = true, seccomp = "no-execve", memory-limit = "+8M" }
steps = [
  "boot",
  { wait = { sweeps = 1 } },
  { migrate = { command = "wrapper", times = 10 } },
  { migrate = { command = "enoent", expect = { failed = {} } } },
  { migrate = { channel = "tcp", expect = { refused = "tcp" } } },
  { bring = "stopped" },
  { limit = { nofile = "+3" } },
  { migrate = { command = "elf-32", expect = "any" } },
  { limit = "restore" },
  { binary = "deleted" },
  { migrate = { command = "replaces-state", expect = { failed = { text = "state" } } } },
  { race = ["migrate", "reset"] },
  { kill-in-update = { signal = "SIGTERM" } },
  { kill-in-update = { expect = "revived", rehearsal = false, from = "setup" } },
  { kill-at = "save" },
  { migrate = { command = "true", expect = "survives" } },
  { interrupt = { point = "save", with = "migrate-cancel" } },
  { signal = { point = "exec", signal = "SIGHUP" } },
]
[matrix]
cpus = [1, 2]
pages = ["4k", "thp"]
"#;

    #[test]
    fn matrix_expands_to_named_cases() {
        let cases = parse("update/running.toml", "update/running", GOOD).unwrap();
        let names: Vec<&str> = cases.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "update/running[cpus=1,pages=4k]",
                "update/running[cpus=1,pages=thp]",
                "update/running[cpus=2,pages=4k]",
                "update/running[cpus=2,pages=thp]",
            ]
        );
        assert_eq!(cases[3].vm.cpus, 2);
        assert_ne!(cases[0].seed, cases[1].seed);
    }

    #[test]
    fn expanded_case_round_trips() {
        for case in parse("update/running.toml", "update/running", GOOD).unwrap() {
            let text = toml::to_string(&case).unwrap();
            assert_eq!(parse_case("case.toml", &text).unwrap(), case, "{text}");
        }
    }

    #[rstest]
    #[case::unknown_key("summary = \"\"\nvm = { cpu = 2 }\nsteps = [\"boot\"]\n")]
    #[case::unknown_step("summary = \"\"\nsteps = [\n  \"boot\",\n  \"stopp\",\n]\n")]
    #[case::unknown_option("summary = \"\"\nsteps = [\"boot\", { migrate = { time = 2 } }]\n")]
    #[case::unknown_command(
        "summary = \"\"\nsteps = [\"boot\", { migrate = { command = \"enent\" } }]\n"
    )]
    #[case::far_from_all("summary = \"\"\nsteps = [\"boot\"]\nxyzzy = 1\n")]
    #[case::wrong_type("summary = \"\"\nvm = { cpus = \"two\" }\nsteps = [\"boot\"]\n")]
    #[case::bad_size("summary = \"\"\nvm = { memory = \"64X\" }\nsteps = [\"boot\"]\n")]
    #[case::no_toml("summary = \n")]
    #[case::missing_key("summary = \"\"\n")]
    #[case::not_in_matrix("summary = \"\"\nvm = { cpus = \"${cpus}\" }\nsteps = [\"boot\"]\n")]
    #[case::unused_in_matrix("summary = \"\"\nsteps = [\"boot\"]\n[matrix]\ncpus = [1]\n")]
    #[case::empty_matrix("summary = \"${x}\"\nsteps = [\"boot\"]\n[matrix]\nx = []\n")]
    #[case::no_boot("summary = \"\"\nsteps = [\"stop\"]\n")]
    #[case::unknown_guest("summary = \"\"\nvm = { guest = \"windows\" }\nsteps = [\"boot\"]\n")]
    #[case::after_the_end("summary = \"\"\nsteps = [\"boot\", \"quit\", \"cont\"]\n")]
    #[case::any_failure(
        "summary = \"\"\nsteps = [\"boot\", { migrate = { expect = { failed = {} } } }]\n"
    )]
    #[case::unknown_limit("summary = \"\"\nsteps = [\"boot\", { limit = { nofiles = \"3\" } }]\n")]
    #[case::bad_limit("summary = \"\"\nsteps = [\"boot\", { limit = { as = \"3X\" } }]\n")]
    #[case::limit_above_nothing(
        "summary = \"\"\nsteps = [\"boot\", { limit = { nproc = \"+3\" } }]\n"
    )]
    #[case::nothing_to_restore("summary = \"\"\nsteps = [\"boot\", { limit = \"restore\" }]\n")]
    #[case::no_binary_of_its_own("summary = \"\"\nsteps = [\"boot\", { binary = \"deleted\" }]\n")]
    #[case::unknown_change(
        "summary = \"\"\nvm = { own-binary = true }\nsteps = [\"boot\", { binary = \"delete\" }]\n"
    )]
    #[case::unknown_filter("summary = \"\"\nvm = { seccomp = \"no-exec\" }\nsteps = [\"boot\"]\n")]
    #[case::no_earlier_state(
        "summary = \"\"\nsteps = [\"boot\", { migrate = { command = \"replaces-state\", expect = \"any\" } }]\n"
    )]
    #[case::unknown_signal(
        "summary = \"\"\nsteps = [\"boot\", { kill-in-update = { signal = \"SIGUSR1\" } }]\n"
    )]
    #[case::unknown_interruption(
        "summary = \"\"\nsteps = [\"boot\", { interrupt = { point = \"save\", with = \"cancel\" } }]\n"
    )]
    #[case::after_an_interrupting_quit(
        "summary = \"\"\nsteps = [\"boot\", { interrupts = \"save\" }, \"cont\"]\n"
    )]
    #[case::after_a_signal(
        "summary = \"\"\nsteps = [\"boot\", { signal = { point = \"save\", signal = \"SIGINT\" } }, \"cont\"]\n"
    )]
    #[case::killed_under_a_keeper("summary = \"\"\nsteps = [\"boot\", { kill-in-update = {} }]\n")]
    #[case::revived_without_a_keeper(
        "summary = \"\"\nsteps = [\"boot\", { kill-vmm = { expect = \"revived\" } }]\n"
    )]
    #[case::revived_after_sigterm(
        "summary = \"\"\nsteps = [\"boot\", { kill-in-update = { signal = \"SIGTERM\", expect = \"revived\" } }]\n"
    )]
    #[case::after_a_kill(
        "summary = \"\"\nsteps = [\"boot\", { kill-vmm = { expect = \"gone\" } }, \"cont\"]\n"
    )]
    #[case::no_cgroup_to_kill("summary = \"\"\nsteps = [\"boot\", { end-by = \"cgroup-kill\" }]\n")]
    #[case::renamed_key("summary = \"\"\nsteps = [\"boot\"]\ndeadline_ms = 1\n")]
    #[case::renamed_value(
        "summary = \"\"\nsteps = [\"boot\", { migrate = { expect = \"kept\" } }]\n"
    )]
    #[case::kebab_case("summary = \"\"\nvm = { own_binary = true }\nsteps = [\"boot\"]\n")]
    #[case::renamed_step("summary = \"\"\nsteps = [\"boot\", { storm = { times = 9 } }]\n")]
    fn mistakes_are_reported(#[case] text: &str) {
        let error = parse("theme/scenario.toml", "theme/scenario", text).unwrap_err();
        let name =
            std::thread::current().name().unwrap_or("").rsplit("::").next().unwrap().to_owned();
        insta::assert_snapshot!(name, error);
    }
}
