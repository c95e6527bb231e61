//! Every figure in the READMEs that can become stale is compared with its source here, or absent.

use std::fs;
use std::path::Path;

use regex::Regex;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// What is counted in prose, and changes with almost every commit.
const COUNTED: &str =
    r"\b\d+ (cases|checks|guests|scenarios|steps|tests|fail points|planted bugs)\b";

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(file)).unwrap()
}

/// Returns the text without code blocks, which other tests compare with what is printed.
fn prose(file: &str) -> String {
    read(file).split("```").step_by(2).collect()
}

/// Returns the first number of each row of the first table of CONFORMANCE.md, by what it counts.
fn compared() -> Vec<(String, u32)> {
    let row = Regex::new(r"(?m)^\| (\d+) \| (.+) \|$").unwrap();
    let text = read("scenarios/CONFORMANCE.md");
    let (table, _) = text.split_once("not compared because").unwrap();
    row.captures_iter(table).map(|row| (row[2].to_owned(), row[1].parse().unwrap())).collect()
}

#[test]
fn no_counts_are_written_by_hand() {
    let counted = Regex::new(COUNTED).unwrap();
    for file in ["README.md", "CHANGELOG.md", "harness/README.md", "guest-images/README.md"] {
        let prose = prose(file);
        let found: Vec<&str> = counted.find_iter(&prose).map(|found| found.as_str()).collect();
        assert_eq!(found, [""; 0], "{file}: leave the number out, or test it here");
    }
}

#[test]
fn about_a_third_of_the_cases_is_compared_with_qemu() {
    let readme = prose("README.md");
    assert_eq!(readme.to_lowercase().matches("about a third").count(), 2);
    let rows = compared();
    let all: u32 = rows.iter().map(|(_, cases)| cases).sum();
    let not: u32 = rows.iter().filter(|(what, _)| what == "not compared").map(|(_, n)| n).sum();
    let share = f64::from(all - not) / f64::from(all);
    assert!(all > 500 && (0.27..0.4).contains(&share), "{share:.2} of {all}: {rows:?}");
}

#[test]
fn bugs_found_in_qemu_are_known_differences() {
    let readme = prose("README.md");
    let (_, found) = readme.split_once("## What it found in QEMU").unwrap();
    let (found, _) = found.split_once("\n## ").unwrap();
    let bugs: Vec<&str> = found.lines().filter(|line| line.starts_with("* ")).collect();
    assert!(found.contains("These five are not:"), "{found}");
    assert_eq!(bugs.len(), 5, "{bugs:?}");
    let differences = read("scenarios/differences.toml");
    let named = Regex::new("`([a-z-]+)`(?:,|:)").unwrap();
    for bug in bugs {
        let (names, _) = bug.split_once(": ").unwrap();
        let names = format!("{names}:");
        let names: Vec<_> = named.captures_iter(&names).map(|name| name[1].to_owned()).collect();
        assert!(!names.is_empty(), "{bug}");
        for name in names {
            assert!(differences.contains(&format!("name = \"{name}\"\n")), "{name}");
        }
    }
}

/// Each report names known differences, by which the harness recognizes the bug.
#[test]
fn bugs_reported_to_qemu_are_known_differences() {
    let (page, differences) = (read("harness/QEMU.md"), read("scenarios/differences.toml"));
    let name = Regex::new("(?m)^(?:### |\\| )`([a-z0-9-]+)`(?:, `([a-z0-9-]+)`)?").unwrap();
    let names = name.captures_iter(&page).flat_map(|names| [names.get(1), names.get(2)]);
    let names: Vec<&str> = names.flatten().map(|name| name.as_str()).collect();
    assert!(names.len() > 9, "{names:?}");
    for name in names {
        assert!(differences.contains(&format!("name = \"{name}\"\n")), "{name}");
    }
    let conformance = read("scenarios/CONFORMANCE.md");
    assert!(conformance.contains("qemu 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)"));
    assert!(page.contains("QEMU 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)"));
}

#[test]
fn finds_in_cloud_hypervisor_are_known_differences() {
    let (page, differences) =
        (read("harness/CLOUD-HYPERVISOR.md"), read("scenarios/differences.toml"));
    let row = Regex::new("(?m)^\\| `([a-z-]+)` \\|").unwrap();
    let mut listed: Vec<String> = row.captures_iter(&page).map(|row| row[1].to_owned()).collect();
    listed.retain(|name| name != "cpr-transfer");
    let known = Regex::new("name = \"([a-z-]+)\"\nvmm = \"cloud-hypervisor\"\n").unwrap();
    let mut known: Vec<String> =
        known.captures_iter(&differences).map(|name| name[1].to_owned()).collect();
    listed.sort();
    known.sort();
    assert_eq!(listed, known);
    assert!(known.len() > 8, "{known:?}");
}

#[test]
fn measurements_and_versions_are_those_of_their_source() {
    let (readme, bench) = (read("README.md"), read("BENCH.md"));
    let rows: Vec<&str> = readme.lines().filter(|line| line.contains(" to ")).collect();
    let rows: Vec<&str> = rows.into_iter().filter(|line| line.starts_with("| ")).collect();
    assert_eq!(rows.len(), 2, "{rows:?}");
    for row in rows {
        assert!(bench.lines().any(|line| line == row), "not in BENCH.md: {row}");
    }
    let qemu = Regex::new(r"QEMU (\d+\.\d+\.\d+)").unwrap();
    let conformance = read("scenarios/CONFORMANCE.md");
    for version in qemu.captures_iter(&readme) {
        assert!(conformance.contains(&format!("qemu {} ", &version[1])), "{}", &version[0]);
    }
    let manifest = read("Cargo.toml");
    let (_, rust) = readme.split_once("All need Rust ").unwrap();
    let (rust, _) = rust.split_once(" or newer").unwrap();
    assert!(manifest.contains(&format!("rust-version = \"{rust}\"")), "{rust}");
}

#[test]
fn share_of_noticed_losses_is_the_limit_of_the_catalogue() {
    let readme = prose("harness/README.md");
    let source = read("harness/src/catalogue/random.rs");
    let limit = Regex::new(r"const ENOUGH: u32 = (\d+);").unwrap();
    let limit = &limit.captures(&source).unwrap()[1];
    let stated = Regex::new(r"below\s+(\d+)\s+%\s+the\s+exit\s+status").unwrap();
    assert_eq!(&stated.captures(&readme).unwrap()[1], limit);
}
