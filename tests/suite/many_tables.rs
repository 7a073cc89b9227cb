//! Two hundred tables in one stream.

use crate::trial::{Trial, on_every_source};
use caudal_tests::Result;

on_every_source!(two_hundred);

async fn two_hundred(t: &Trial) -> Result<()> {
    let names: Vec<String> = (0..200).map(|i| format!("table_{i:03}")).collect();
    let mut session = t.source.session().await?;
    for name in &names {
        session
            .exec(&t.source.sql(&format!(
                "create table {name} (id {{int4}} primary key, name {{text}});
                 insert into {name} values (1, 'one'), (2, 'two'), (3, '{name}')"
            )))
            .await?;
    }
    let agent = t.agent()?;
    agent.run_until_caught_up().await?;
    for name in &names {
        session
            .exec(&format!(
                "begin; insert into {name} values (4, 'four'); update {name} set name = 'zwei' where id = 2;
                 delete from {name} where id = 1; commit"
            ))
            .await?;
    }
    agent.run_until_caught_up().await?;
    let tables: Vec<&str> = names.iter().map(String::as_str).collect();
    let report = t.expect_equal(&tables).await?;
    assert_eq!(report.tables.len(), 200);
    Ok(())
}
