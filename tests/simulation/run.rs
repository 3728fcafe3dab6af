//! Runs seeds and tells what came of them. A failure names its seed and what was found, and shows the end of the trace;
//! the same seed gives the same world again.

use crate::world::World;
use crate::world::oracle;
use crate::world::plan::{Kind, Plan};
use crate::world::planted::Planted;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What one world came to.
pub struct Outcome {
    pub seed: u64,
    pub world: World,
    pub violations: Vec<String>,
}

impl Outcome {
    /// Whether the oracle found nothing.
    pub fn is_good(&self) -> bool {
        self.violations.is_empty()
    }

    /// Prints the end of the trace and what was found.
    pub fn print(&self) {
        for line in self.world.trace.tail() {
            println!("{line}");
        }
        println!("seed {}: {} violations", self.seed, self.violations.len());
        for violation in &self.violations {
            println!("  {violation}");
        }
        println!("replay with RINGPOST_SIM_SEED={}", self.seed);
    }
}

/// Runs one world.
pub fn run(plan: Plan, planted: Option<Planted>, print: bool) -> Outcome {
    let seed = plan.seed;
    Planted::plant_in_spool(planted);
    let mut world = World::new(plan, planted, print);
    let run = catch_unwind(AssertUnwindSafe(|| {
        let rested = world.run();
        oracle::judge(&mut world, rested);
    }));
    Planted::plant_in_spool(None);
    if let Err(panic) = run {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words");
        world.ledger.violation(format!("panic: {text}"));
    }
    let violations = std::mem::take(&mut world.ledger.violations);
    Outcome { seed, world, violations }
}

/// Runs one seed of a kind.
pub fn run_seed(seed: u64, kind: Kind, planted: Option<Planted>) -> Outcome {
    run(Plan::new(seed, kind), planted, false)
}

/// A number from the environment.
pub fn number_from(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {value:?}")))
}
