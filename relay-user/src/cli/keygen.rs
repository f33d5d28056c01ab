//! `relay keygen`.

use std::path::PathBuf;

use clap::Args;

use crate::crypto::{OperatorKey, StaticKey};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    kind: Kind,
    /// The file to make; it must not exist yet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Kind {
    /// Make a relay's X25519 key.
    #[arg(long)]
    relay: bool,
    /// Make an operator's Ed25519 key.
    #[arg(long)]
    operator: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let public = if arguments.kind.operator {
        let key = OperatorKey::generate();
        key.save(&arguments.out)?;
        key.public()
    } else {
        let key = StaticKey::generate();
        key.save(&arguments.out)?;
        *key.public()
    };
    println!("{}", hex::encode(public));
    Ok(())
}
