//! Renders the catalogue as a table: `scenarios/BUG-CLASSES.md`.

use std::fmt::Write;

use super::BugClass;
use super::lab::Record;

const HEADER: &str = "\
# Bug classes

Each known class of bugs in updates, a public example, and the scenario that catches it. This is
proved by planting the bug: `cargo run --release -- catalogue` runs each scenario twice, unmodified,
where it must pass, and with `--plant NAME`, where the check named here must fail; so does
`cargo test -p scenarios --test catalogue`.

The last column has what was seen in a lab, where KVM runs the guest's kernel mode on an emulated CPU, by
`catalogue --unproved --record scenarios/lab-catalogue.toml`: the check that failed; empty if the class was not
tried there.

Generated from `bug-classes.toml` and `lab-catalogue.toml` by
`cargo run --release -- catalogue --write scenarios/BUG-CLASSES.md`, do not edit.

| class | public example | scenario | planted bug | check | lab |
|---|---|---|---|---|---|
";

/// Returns the whole file.
pub fn markdown(classes: &[BugClass], lab: &Record) -> String {
    let mut text = HEADER.to_owned();
    for entry in classes {
        let BugClass { class, example, planted, case, checks, unproved, runs, .. } = entry;
        let check = match unproved {
            None if *runs > 1 => format!("`{}`, in at most {runs} runs", checks.join("`, `")),
            None => format!("`{}`", checks.join("`, `")),
            Some(why) => format!("unproved: {why}"),
        };
        let lab = lab.of(entry).map_or_else(String::new, ToString::to_string);
        // Writing to a String cannot fail.
        let _ =
            writeln!(text, "| {class} | {example} | `{case}` | `{planted}` | {check} | {lab} |");
    }
    text
}
