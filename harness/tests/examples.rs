//! Tests of the CI examples in `ci/examples`: they are valid for their platforms, this harness
//! accepts their command lines, and their shards cover every case.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

/// An example file and the program that validates it.
struct Example {
    file: &'static str,
    validator: &'static [&'static str],
    /// The placeholder for a shard's number, and the platform's values for 4 shards.
    shard: &'static str,
    values: [&'static str; 4],
}

const EXAMPLES: [Example; 3] = [
    Example {
        file: "github-actions.yml",
        validator: &["check-jsonschema", "--builtin-schema", "vendor.github-workflows"],
        shard: "${{ matrix.shard }}",
        values: ["1/4", "2/4", "3/4", "4/4"],
    },
    Example {
        file: "gitlab-ci.yml",
        validator: &["check-jsonschema", "--builtin-schema", "vendor.gitlab-ci"],
        shard: "$CI_NODE_INDEX/$CI_NODE_TOTAL",
        values: ["1/4", "2/4", "3/4", "4/4"],
    },
    Example {
        file: "kubernetes-job.yml",
        validator: &["kubernetes-validate", "--strict"],
        shard: "$((JOB_COMPLETION_INDEX + 1))",
        values: ["1", "2", "3", "4"],
    },
];

fn main() -> ExitCode {
    let mut tests = Vec::new();
    for example in &EXAMPLES {
        let trial = |what: &str, test: fn(&Example) -> Result<(), Failed>| {
            Trial::test(format!("{} {what}", example.file), move || test(example))
        };
        tests.push(trial("command_lines_are_valid", command_lines));
        tests.push(trial("shards_are_complete", shards));
        tests.push(match validator(example) {
            Some(_) => trial("is_valid", is_valid),
            None => missing(trial("is_valid", |_| {
                Err("needs the schemas: run ci/install-schemas".into())
            })),
        });
    }
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// Makes the test fail if everything must run, as in CI, or else reports it as ignored.
fn missing(trial: Trial) -> Trial {
    let must = cpr_harness::run::requirements::all_required();
    if must { trial } else { trial.with_kind("run ci/install-schemas").with_ignored_flag(true) }
}

fn ci() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ci")
}

fn validator(example: &Example) -> Option<PathBuf> {
    let program = ci().join(".schemas/bin").join(example.validator[0]);
    program.exists().then_some(program)
}

fn is_valid(example: &Example) -> Result<(), Failed> {
    let program = validator(example).ok_or("it was there")?;
    let path = ci().join("examples").join(example.file);
    let done = Command::new(program).args(&example.validator[1..]).arg(path).output()?;
    let told = [done.stdout, done.stderr].concat();
    match done.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&told).into_owned().into()),
    }
}

fn documents(example: &Example) -> Result<Vec<Value>, Failed> {
    let text = std::fs::read_to_string(ci().join("examples").join(example.file))?;
    Ok(serde_saphyr::from_multiple(&text)?)
}

/// Collects all strings in `value`.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| texts(value, found)),
        Value::Object(members) => members.values().for_each(|value| texts(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The command lines that start the harness, split as by a shell, from the harness's name on.
fn lines(example: &Example) -> Result<Vec<Vec<String>>, Failed> {
    let mut found = Vec::new();
    documents(example)?.iter().for_each(|document| texts(document, &mut found));
    let joined = found.iter().map(|text| text.replace("\\\n", " "));
    let lines: Vec<String> =
        joined.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    let mut commands = Vec::new();
    for line in &lines {
        let words = words(line);
        let is_harness = |word: &String| word.rsplit('/').next() == Some("cpr-harness");
        let at = words.iter().take(2).position(is_harness);
        // A path that is copied or made executable is not a command.
        let started = at.filter(|at| *at == 0 || words[0] == "exec");
        commands.extend(started.map(|at| words[at..].to_vec()).filter(|words| words.len() > 1));
    }
    Ok(commands)
}

/// Splits at spaces, except inside quotes and inside expressions that a shell or a platform
/// expands.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut depth) = (Vec::new(), String::new(), false, 0);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted && depth == 0 => words.push(std::mem::take(&mut word)),
            _ => {
                depth += i32::from(matches!(c, '(' | '{')) - i32::from(matches!(c, ')' | '}'));
                word.push(c);
            }
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// Parses every line with the harness's own parser, with the platform's value for each shard.
fn command_lines(example: &Example) -> Result<(), Failed> {
    let lines = lines(example)?;
    for line in &lines {
        for value in example.values {
            let line: Vec<String> = line.iter().map(|w| w.replace(example.shard, value)).collect();
            let parsed = cpr_harness::cli::command().try_get_matches_from(&line);
            parsed.map_err(|e| format!("{}: {e}", line.join(" ")))?;
        }
    }
    let subcommands: Vec<&str> = lines.iter().map(|line| line[1].as_str()).collect();
    match subcommands.as_slice() {
        ["run", "report"] => Ok(()),
        other => Err(format!("one line runs and one reports, not {other:?}").into()),
    }
}

/// Checks that the platform starts exactly the shards that the command line expects.
fn shards(example: &Example) -> Result<(), Failed> {
    let documents = documents(example)?;
    let first = documents.first().ok_or("it is empty")?;
    let lines = lines(example)?;
    let run = lines.iter().find(|line| line[1] == "run").ok_or("nothing runs")?;
    let at = run.iter().position(|word| word == "--shard").ok_or("it has no --shard")?;
    let written = run.get(at + 1).ok_or("--shard has no value")?;
    let expected: Vec<String> =
        example.values.iter().map(|value| written.replace(example.shard, value)).collect();
    let all: BTreeSet<String> = (1..=4).map(|index| format!("{index}/4")).collect();
    assert_eq!(expected.into_iter().collect::<BTreeSet<_>>(), all, "{written}");
    // Check that the platform is configured to produce these values.
    match example.file {
        "github-actions.yml" => {
            let matrix = &first["jobs"]["scenarios"]["strategy"]["matrix"]["shard"];
            assert_eq!(*matrix, serde_json::json!(example.values));
        }
        "gitlab-ci.yml" => assert_eq!(first["scenarios"]["parallel"], 4),
        _ => {
            let spec = &first["spec"];
            let kind = (&spec["completionMode"], &spec["completions"], &spec["parallelism"]);
            assert_eq!(kind, (&"Indexed".into(), &4.into(), &4.into()));
        }
    }
    Ok(())
}
