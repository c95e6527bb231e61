//! Reports on runs and evidence, for terminals, browsers and CI.

pub mod case_text;
pub mod errors;
pub mod folder;
pub mod github;
pub mod html;
pub mod junit;
pub mod last_run;
pub mod merge;
pub mod paint;
pub mod progress;
pub mod qmp_text;
pub mod reasons;
pub mod record;
pub mod show;
pub mod stdout;
pub mod terminal;
pub mod tested;
