//! Renders the overview of all cases: a table per scenario, whose axes are the keys of its matrix.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::super::record::Entry;
use super::parts::{Kind, anchor, scrolling};
use crate::scenario::choice::{self, Choice};

/// Most characters of the values of a single key that are written side by side.
const WIDE: usize = 28;

/// The cases of a scenario as a table. Without keys it is a single cell.
struct Table<'a> {
    scenario: String,
    /// The key whose values are the rows, if any.
    down: Option<String>,
    rows: Vec<String>,
    /// The keys whose values, combined, are the columns.
    across: Vec<String>,
    columns: Vec<Vec<String>>,
    cells: BTreeMap<(usize, usize), Vec<&'a Entry>>,
}

/// Renders the tables, grouped by theme.
pub fn matrix(themes: &[&str], cases: &[Entry]) -> Markup {
    html! {
        section aria-labelledby="matrix" {
            h2 id="matrix" { "Matrix" }
            p.quiet.legend {
                @for kind in Kind::ALL {
                    span { span class=(format!("cell {}", kind.class())) aria-hidden="true" { (kind.sign()) } " " (kind.name()) }
                    " "
                }
            }
            div.themes {
                @for theme in themes {
                    div.theme-cells {
                        h3 { (theme) }
                        @for table in tables(theme, cases) { (table.render()) }
                    }
                }
            }
        }
    }
}

/// Returns the tables of a theme, sorted by scenario.
fn tables<'a>(theme: &str, cases: &'a [Entry]) -> Vec<Table<'a>> {
    let mut scenarios: BTreeMap<String, Vec<(Choice, &Entry)>> = BTreeMap::new();
    for entry in cases.iter().filter(|entry| entry.theme == theme) {
        let (name, choice) = choice::split(&entry.report.case);
        scenarios.entry(name).or_default().push((choice, entry));
    }
    scenarios.into_iter().map(|(scenario, cases)| Table::of(scenario, &cases)).collect()
}

impl<'a> Table<'a> {
    fn of(scenario: String, cases: &[(Choice, &'a Entry)]) -> Self {
        let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (key, value) in cases.iter().flat_map(|(choice, _)| choice) {
            let values = values.entry(key).or_default();
            if !values.contains(&value.as_str()) {
                values.push(value);
            }
        }
        values.retain(|_, values| values.len() > 1);
        values.values_mut().for_each(|values| values.sort_by_key(|value| natural(value)));
        let letters = |values: &[&str]| values.iter().map(|value| value.len() + 2).sum::<usize>();
        let is_flat = values.len() == 1 && values.values().all(|values| letters(values) <= WIDE);
        // The key with the most values goes down, so that the table stays narrow.
        let down = values.iter().max_by_key(|(_, values)| letters(values)).filter(|_| !is_flat);
        let down = down.map(|(key, _)| (*key).to_owned());
        let rows = down.as_ref().and_then(|key| values.get(key.as_str()));
        let rows: Vec<String> =
            rows.map_or(vec![String::new()], |rows| rows.iter().map(|v| (*v).to_owned()).collect());
        let across = values.keys().filter(|key| Some(**key) != down.as_deref());
        let across: Vec<String> = across.map(|key| (*key).to_owned()).collect();
        let of = |choice: &Choice, key: &String| choice.get(key).cloned().unwrap_or_default();
        let column = |choice: &Choice| across.iter().map(|key| of(choice, key)).collect::<Vec<_>>();
        let mut columns: Vec<Vec<String>> =
            cases.iter().map(|(choice, _)| column(choice)).collect();
        columns.sort_by_key(|values| values.iter().map(|value| natural(value)).collect::<Vec<_>>());
        columns.dedup();
        let mut cells: BTreeMap<(usize, usize), Vec<&Entry>> = BTreeMap::new();
        for (choice, entry) in cases {
            let row = down.as_ref().map(|key| of(choice, key)).unwrap_or_default();
            let row = rows.iter().position(|other| *other == row).unwrap_or(0);
            let column = column(choice);
            let column = columns.iter().position(|other| *other == column).unwrap_or(0);
            cells.entry((row, column)).or_default().push(entry);
        }
        Self { scenario, down, rows, across, columns, cells }
    }

    fn render(&self) -> Markup {
        let name = self.scenario.split_once('/').map_or(self.scenario.as_str(), |(_, name)| name);
        let at = |row, column| self.cells.get(&(row, column)).into_iter().flatten();
        if self.down.is_none() && self.across.is_empty() {
            return html! {
                div.row { span.scenario { (name) } span { @for entry in at(0, 0) { (cell(entry)) } } }
            };
        }
        let last = self.across.len().saturating_sub(1);
        let down = self.down.as_ref().map(|key| format!("{key} ↓"));
        html! {
            div.row {
                span.scenario { (name) }
                (scrolling(&format!("matrix of {}", self.scenario), html! {
                    table.axes {
                        thead {
                            @for (index, key) in self.across.iter().enumerate() {
                                tr {
                                    th.axis scope="row" {
                                        (key) " →"
                                        @if let (Some(down), true) = (&down, index == last) { br; (down) }
                                    }
                                    @for values in &self.columns {
                                        th scope="col" { (values.get(index).map_or("", String::as_str)) }
                                    }
                                }
                            }
                            @if let (Some(down), true) = (&down, self.across.is_empty()) {
                                tr { th.axis scope="col" { (down) } th scope="col" { span.unseen { "verdict" } } }
                            }
                        }
                        tbody {
                            @for (row, value) in self.rows.iter().enumerate() {
                                tr {
                                    th scope="row" { (value) }
                                    @for column in 0..self.columns.len() {
                                        td { @for entry in at(row, column) { (cell(entry)) } }
                                    }
                                }
                            }
                        }
                    }
                }))
            }
        }
    }
}

/// Sorts numbers by value.
fn natural(value: &str) -> (Option<u64>, String) {
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    (value[..digits].parse().ok(), value.to_owned())
}

fn cell(entry: &Entry) -> Markup {
    let kind = Kind::of(entry);
    let label = format!("{}: {}", entry.report.case, kind.name());
    html! {
        a class=(format!("cell {}", kind.class())) href=(format!("#{}", anchor(&entry.report.case)))
            title=(label) aria-label=(label) { (kind.sign()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Report;
    use rstest::rstest;

    fn shape(names: &[&str]) -> (Option<String>, Vec<String>, Vec<String>, Vec<Vec<String>>) {
        let entries: Vec<Entry> = names
            .iter()
            .map(|name| Entry {
                summary: String::new(),
                theme: "a".into(),
                evidence: None,
                run: 0,
                known: Default::default(),
                report: Report::of(name, String::new(), String::new()),
            })
            .collect();
        let tables = tables("a", &entries);
        let [table] = &tables[..] else { panic!("{} tables", tables.len()) };
        let placed: usize = table.cells.values().map(Vec::len).sum();
        assert_eq!(placed, names.len());
        assert!(table.cells.values().all(|cell| cell.len() == 1), "two cases in one cell");
        (table.down.clone(), table.rows.clone(), table.across.clone(), table.columns.clone())
    }

    #[test]
    fn the_longest_axis_goes_down_and_the_others_across() {
        let (down, rows, across, columns) = shape(&[
            "a/b[cpus=2,guest=running,point=save]",
            "a/b[cpus=10,guest=running,point=publish]",
            "a/b[cpus=2,guest=running,point=publish]",
        ]);
        assert_eq!(down.as_deref(), Some("point"));
        assert_eq!(rows, ["publish", "save"]);
        assert_eq!(across, ["cpus"]);
        assert_eq!(columns, [["2"], ["10"]]);
    }

    #[rstest]
    #[case(&["a/b"], None, 1, 1)]
    #[case(&["a/b[cpus=1]", "a/b[cpus=2]"], None, 1, 2)]
    #[case(&["a/b[x=a-long-value]", "a/b[x=another-long-value]"], Some("x"), 2, 1)]
    fn short_values_of_one_key_are_side_by_side(
        #[case] names: &[&str],
        #[case] down: Option<&str>,
        #[case] rows: usize,
        #[case] columns: usize,
    ) {
        let shape = shape(names);
        assert_eq!((shape.0.as_deref(), shape.1.len(), shape.3.len()), (down, rows, columns));
    }
}
