//! Tests of shards, which split a set of cases to run them on several machines.

use std::collections::BTreeSet;
use std::fs;

use crate::program::harness;

const SCENARIO: &str = r#"
summary = "started"
vm = { cpus = "${cpus}" }
steps = ["boot", "quit"]

[matrix]
cpus = [1, 2, 3, 4]
"#;

fn listed(args: &[&str]) -> Vec<String> {
    let elsewhere = tempfile::tempdir().unwrap();
    let (code, told) = harness(elsewhere.path(), &[&["list"], args].concat());
    assert_eq!(code, Some(0), "{told}");
    told.lines().map(str::to_owned).collect()
}

#[test]
fn all_shards_together_list_every_case_once() {
    let all = listed(&["--filter", "update/"]);
    let shards = ["1/3", "2/3", "3/3"];
    let parts = shards.map(|shard| listed(&["--filter", "update/", "--shard", shard]));
    let together: BTreeSet<&String> = parts.iter().flatten().collect();
    assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), all.len());
    assert_eq!(together, all.iter().collect());
    assert!(parts.iter().all(|part| !part.is_empty()));
}

#[test]
fn shard_runs_its_part_even_if_empty() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("scenarios/theme")).unwrap();
    fs::write(folder.path().join("scenarios/theme/started.toml"), SCENARIO).unwrap();
    let mut sum = 0;
    let mut empty = 0;
    for index in 1..=6 {
        let shard = format!("{index}/6");
        let (code, told) = harness(folder.path(), &["run", "--backend", "mock", "--shard", &shard]);
        assert_eq!(code, Some(0), "{told}");
        let head = told.lines().next().unwrap();
        let count = head.strip_prefix(&format!("shard {shard}: ")).unwrap();
        let count = count.strip_suffix(" of 4 cases from scenarios").unwrap();
        let count: usize = count.parse().unwrap();
        assert!(told.contains(&format!("{count} ran, {count} passed, 0 failed")), "{told}");
        sum += count;
        empty += usize::from(count == 0);
    }
    assert_eq!(sum, 4);
    assert!(empty >= 2);
    let (code, told) = harness(folder.path(), &["run", "--shard", "1/2", "--errors", "E.md"]);
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("omit all options that select cases"), "{told}");
}
