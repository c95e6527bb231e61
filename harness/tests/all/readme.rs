//! The READMEs do what they say: their commands are run, and what is generated in them is current.

use std::fs;
use std::path::Path;
use std::time::Duration;

use assert_cmd::Command;
use cpr_harness::check;
use regex::Regex;

use crate::program::harness;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// What the README runs the harness with.
const RUN: &str = "cargo run --release -- ";
/// Longer than the demonstration takes on a busy host.
const DEMONSTRATION: Duration = Duration::from_secs(60);

/// The blocks of `file`: what stands after the opening fence, and the text.
fn blocks(file: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(Path::new(ROOT).join(file)).unwrap();
    let (mut blocks, mut open) = (Vec::new(), None);
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(kind), None) => open = Some((kind.to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some((_, block))) => *block += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    blocks
}

/// The commands of the harness that `file` shows, without their comments.
fn commands(file: &str) -> Vec<String> {
    let all = blocks(file).into_iter().flat_map(|(_, block)| {
        block.lines().map(|line| line.trim_start_matches("$ ").to_owned()).collect::<Vec<_>>()
    });
    let ours = all.filter_map(|line| line.strip_prefix(RUN).map(str::to_owned));
    ours.map(|line| line.split(" #").next().unwrap().trim().to_owned()).collect()
}

#[test]
fn commands_are_accepted_by_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let all: Vec<_> = ["README.md", "harness/README.md", "harness/QEMU.md", "BENCH.md"]
        .into_iter()
        .flat_map(commands)
        .collect();
    assert!(all.len() > 12, "{all:?}");
    for line in all {
        let mut words = shlex::split(&line).unwrap();
        // Help is printed if everything before it is valid.
        words.push("--help".to_owned());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (code, told) = harness(folder.path(), &words);
        assert_eq!(code, Some(0), "{line}: {told}");
    }
}

#[test]
fn failing_case_prints_what_the_readme_shows() {
    let (line, shown) = blocks("README.md")
        .into_iter()
        .find_map(|(_, block)| {
            let (line, shown) = block.strip_prefix("$ ")?.split_once('\n')?;
            Some((line.strip_prefix(RUN)?.to_owned(), shown.to_owned()))
        })
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let words = shlex::split(&line).unwrap();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (code, printed) = harness(folder.path(), &words);
    assert_eq!(code, Some(1), "{printed}");
    assert_eq!(comparable(&printed), comparable(&shown), "printed:\n{printed}\nshown:\n{shown}");
}

/// `text` without what differs from run to run: times, counts, paths, and what the README leaves out.
fn comparable(text: &str) -> Vec<String> {
    let times = Regex::new(r"[0-9.]+ (ms|s)\b").unwrap();
    let spaces = Regex::new(r" +").unwrap();
    // How many interrupts the guest has counted depends on the host's load.
    let counts = Regex::new("0x[0-9a-f]+").unwrap();
    let origin = Regex::new("embedded scenarios|scenarios$").unwrap();
    let commands = ["replay: ", "show: ", "run what failed again: "];
    let lines = text.lines().filter(|line| !commands.iter().any(|word| line.contains(word)));
    lines
        .map(|line| {
            let line = times.replace_all(line, "TIME");
            let line = counts.replace_all(&line, "COUNT");
            origin.replace(&spaces.replace_all(&line, " "), "scenarios").trim().to_owned()
        })
        .filter(|line| !line.is_empty())
        .collect()
}

#[test]
fn vmm_is_driven_by_hand() {
    let block = blocks("README.md").into_iter().find(|(kind, _)| kind == "bash").unwrap().1;
    let (head, rest) = block.split_once("\ndir=").unwrap();
    assert!(head.contains("cargo build --release") && head.contains("harness="), "{head}");
    let script = format!("set -eu\nharness=$HARNESS\ndir={rest}");
    let done = Command::new("bash")
        .args(["-c", &script])
        .env("HARNESS", env!("CARGO_BIN_EXE_cpr-harness"))
        .timeout(DEMONSTRATION)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&done.stdout);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{printed}\n{errors}");
    let counts: Vec<u64> = Regex::new("guest sent ([0-9]+) lines, in order: True")
        .unwrap()
        .captures_iter(&printed)
        .map(|found| found[1].parse().unwrap())
        .collect();
    assert!(matches!(counts[..], [before, after] if 0 < before && before < after), "{printed}");
    let processes: Vec<_> = Regex::new("process ([0-9]+) was started with (.*)")
        .unwrap()
        .captures_iter(&printed)
        .map(|found| (found[1].to_owned(), found[2].ends_with("/state")))
        .collect();
    let [(before, false), (after, true)] = &processes[..] else { panic!("{printed}") };
    assert_eq!(before, after, "{printed}");
}

#[test]
fn table_of_checks_is_current() {
    let text = fs::read_to_string(Path::new(ROOT).join("harness/README.md")).unwrap();
    let (_, table) = text.split_once("<!-- checks: generated from check::ALL -->\n").unwrap();
    let (table, _) = table.split_once("<!-- end of checks -->").unwrap();
    let row = |check: &check::Check| format!("| `{}` | {} |\n", check.name, check.claim);
    let rows: String = check::ALL.iter().map(row).collect();
    let expected = format!("| check | claim |\n|---|---|\n{rows}");
    assert_eq!(table, expected, "put this into harness/README.md:\n{expected}");
}

#[test]
fn every_check_in_the_folder_runs() {
    let folder = Path::new(ROOT).join("harness/src/check");
    let mut defined = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        if text.contains("pub const CHECK: Check") {
            let (_, rest) = text.split_once("name: \"").unwrap();
            defined.push(rest.split('"').next().unwrap().to_owned());
        }
    }
    let mut run: Vec<_> = check::ALL.iter().map(|check| check.name.to_owned()).collect();
    defined.sort();
    run.sort();
    assert_eq!(defined, run, "a check that is not in check::ALL never runs");
}
