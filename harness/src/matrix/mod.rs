//! Updates several builds of a VMM to each other and back.

pub mod build;
pub mod first_update;
pub mod table;

use crate::backend::skew::Course;
use crate::scenario::{Case, Expect, Step};

/// The builds that VMs are started by and updated to, as indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The build that VMs are started by.
    pub from: usize,
    /// The build that they are updated to.
    pub to: usize,
    /// Whether they are updated back.
    pub course: Course,
}

impl Route {
    /// Every route between `count` builds.
    pub fn all(count: usize) -> Vec<Self> {
        let pairs = (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b)));
        let routes = |(a, b)| {
            [(a, b, Course::There), (b, a, Course::There), (a, b, Course::ThereAndBack)]
                .map(|(from, to, course)| Self { from, to, course })
        };
        pairs.flat_map(routes).collect()
    }

    /// The routes of its two updates: there, and back.
    pub fn parts(&self) -> [Self; 2] {
        let Self { from, to, .. } = *self;
        let course = Course::There;
        [Self { from, to, course }, Self { from: to, to: from, course }]
    }

    /// Its title, with the letters of the builds.
    pub fn title(&self) -> String {
        self.letters().join(" → ")
    }

    /// The name of the folder for its evidence.
    pub fn folder(&self) -> String {
        self.letters().join("-")
    }

    fn letters(&self) -> Vec<&'static str> {
        let (from, to) = (build::letter(self.from), build::letter(self.to));
        match self.course {
            Course::There => vec![from, to],
            Course::ThereAndBack => vec![from, to, from],
        }
    }

    /// Adapts `case` to this route: if VMs are updated back, every good update is doubled.
    pub fn case(&self, mut case: Case) -> Case {
        if self.course == Course::ThereAndBack {
            for step in &mut case.steps {
                if let Step::Migrate(migrate) = step
                    && migrate.expect == Expect::Completed
                {
                    migrate.repeat = migrate.repeat.saturating_mul(2);
                }
            }
        }
        case
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse;

    #[test]
    fn each_pair_is_tried_both_ways_and_there_and_back() {
        let titles: Vec<String> = Route::all(3).iter().map(Route::title).collect();
        let expected = "A → B, B → A, A → B → A, A → C, C → A, A → C → A, B → C, C → B, B → C → B";
        assert_eq!(titles.join(", "), expected);
        assert!(Route::all(1).is_empty());
    }

    #[test]
    fn there_and_back_doubles_good_updates() {
        let text = r#"
            summary = ""
            steps = ["boot", { migrate = { times = 3 } }, { migrate = { expect = "any" } }, "quit"]
        "#;
        let case = parse::parse("file", "theme/case", text).unwrap().remove(0);
        let repeats = |course| {
            let route = Route { from: 0, to: 1, course };
            let steps = route.case(case.clone()).steps;
            let repeat = |step: &Step| match step {
                Step::Migrate(migrate) => Some(migrate.repeat),
                _ => None,
            };
            steps.iter().filter_map(repeat).collect::<Vec<_>>()
        };
        assert_eq!(repeats(Course::There), [3, 1]);
        assert_eq!(repeats(Course::ThereAndBack), [6, 1]);
    }
}
