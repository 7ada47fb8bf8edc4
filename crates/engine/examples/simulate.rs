//! `make simulate SEEDS=N [SEED=S]`: plays N histories from seed S on, and tells the smallest story of one that fails.

#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]

#[path = "../tests/driver/mod.rs"]
mod driver;

use std::process::ExitCode;

use driver::Campaign;

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let seeds = numbers.first().copied().unwrap_or(1000);
    let first = numbers.get(1).copied().unwrap_or(1);
    let found = Campaign { first, seeds, longest: None, broken: None }.run();
    println!("{}", found.summary());
    match found.failure {
        None => ExitCode::SUCCESS,
        Some((seed, _)) => {
            println!("FAILED\n{}", driver::story(seed, keepmark_testkit::sim::Kinds::All, None));
            ExitCode::FAILURE
        }
    }
}
