//! Renders the catalogue as a table: `scenarios/BUG-CLASSES.md`.

use std::fmt::Write;

use super::BugClass;

const HEADER: &str = "\
# Bug classes

Each known class of bugs in updates, a public example, and the scenario that catches it. This is
proved by planting the bug: `cargo run --release -- catalogue` runs each scenario twice, unmodified,
where it must pass, and with `--plant NAME`, where the check named here must fail; so does
`cargo test -p scenarios --test catalogue`.

Generated from `bug-classes.toml` by
`cargo run --release -- catalogue --write scenarios/BUG-CLASSES.md`, do not edit.

| class | public example | scenario | planted bug | check |
|---|---|---|---|---|
";

/// Returns the whole file.
pub fn markdown(classes: &[BugClass]) -> String {
    let mut text = HEADER.to_owned();
    for BugClass { class, example, planted, case, checks, unproved, runs, .. } in classes {
        let check = match unproved {
            None if *runs > 1 => format!("`{}`, in at most {runs} runs", checks.join("`, `")),
            None => format!("`{}`", checks.join("`, `")),
            Some(why) => format!("unproved: {why}"),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {class} | {example} | `{case}` | `{planted}` | {check} |");
    }
    text
}
