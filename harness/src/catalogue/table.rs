//! `scenarios/BUG-CLASSES.md`: the catalogue as people read it.

use std::fmt::Write;

use super::BugClass;

const HEADER: &str = "\
# Bug classes

Each known class of bugs in updates, a public example of it, and the scenario that notices it. That
it does is proved by planting the bug: `cargo run --release -- catalogue` runs each scenario twice,
clean, where it must pass, and with `--plant NAME`, where the check named here must fail; so does
`cargo test -p scenarios --test catalogue`.

Made from `bug-classes.toml` by `cargo run --release -- catalogue --write scenarios/BUG-CLASSES.md`.

| class | public example | scenario | planted bug | check |
|---|---|---|---|---|
";

/// The whole file.
pub fn markdown(classes: &[BugClass]) -> String {
    let mut text = HEADER.to_owned();
    for BugClass { class, example, planted, case, checks, unproved, runs, .. } in classes {
        let check = match unproved {
            None if *runs > 1 => format!("`{}`, in {runs} runs at most", checks.join("`, `")),
            None => format!("`{}`", checks.join("`, `")),
            Some(why) => format!("unproved: {why}"),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {class} | {example} | `{case}` | `{planted}` | {check} |");
    }
    text
}
