//! Rows that change while the agents follow: a deterministic mix of what applications do.
//!
//! Every statement says how many rows it touched, so that what arrives in the lake can be
//! counted against what was done, operation by operation: exactly once, not roughly.

use caudal_tests::session::Session;
use caudal_tests::{Context, Result, bail};
use mysql_async::prelude::Queryable;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Runs a statement and says how many rows it touched.
async fn touch(session: &mut Session, sql: &str) -> Result<u64> {
    match session {
        Session::Postgres(client) => client.execute(sql, &[]).await.context(sql),
        Session::Mysql(conn) => {
            conn.query_drop(sql).await.context(sql)?;
            Ok(conn.affected_rows())
        }
    }
}

/// Rows inserted, updated and deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Operations {
    /// `c`
    pub inserts: u64,
    /// `u`
    pub updates: u64,
    /// `d`
    pub deletes: u64,
}

/// What was done to a source.
#[derive(Debug, Clone, Default)]
pub struct Done {
    /// By table.
    pub tables: BTreeMap<&'static str, Operations>,
    /// Transactions that were committed.
    pub committed: u64,
    /// Transactions that were rolled back.
    pub rolled_back: u64,
}

impl Done {
    /// Rows of all tables and operations.
    pub fn rows(&self) -> u64 {
        self.tables
            .values()
            .map(|o| o.inserts + o.updates + o.deletes)
            .sum()
    }
    fn add(&mut self, table: &'static str, inserts: u64, updates: u64, deletes: u64) {
        let sum = self.tables.entry(table).or_default();
        sum.inserts += inserts;
        sum.updates += updates;
        sum.deletes += deletes;
    }
}

/// Keys of new orders begin far above those of TPC-H.
const FIRST_NEW_ORDER: i64 = 1_000_000_000;
/// What a part's key grows by when it changes; TPC-H has fewer parts up to scale 50.
const PART_KEY_STEP: i64 = 10_000_000;
/// Between two steps: a busy shop, not a benchmark.
const PACE: Duration = Duration::from_millis(4);

/// The statements that change a source.
pub struct Workload {
    session: Session,
    orders: Vec<String>,
    step: i64,
    done: Done,
}

impl Workload {
    /// A workload on a loaded database.
    pub async fn new(mut session: Session) -> Result<Workload> {
        let orders: Vec<String> = session
            .rows("SELECT o_orderkey FROM orders ORDER BY o_orderkey LIMIT 5000")
            .await?
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten())
            .collect();
        if orders.is_empty() {
            bail!("the table orders is empty: choose a greater --scale");
        }
        Ok(Workload {
            session,
            orders,
            step: 0,
            done: Done::default(),
        })
    }

    /// Changes rows for a while; `tell` hears of the transactions so far.
    pub async fn run(mut self, how_long: Duration, tell: impl Fn(&Done)) -> Result<Done> {
        let end = Instant::now() + how_long;
        while Instant::now() < end {
            self.one_step().await?;
            self.step += 1;
            if self.step % 25 == 0 {
                tell(&self.done);
            }
            tokio::time::sleep(PACE).await;
        }
        Ok(self.done)
    }

    async fn one_step(&mut self) -> Result<()> {
        self.place_order().await?;
        self.touch_order().await?;
        if self.step % 3 == 2 {
            self.cancel_order(FIRST_NEW_ORDER + self.step - 2).await?;
        }
        if self.step % 5 == 4 {
            self.change_of_mind().await?;
        }
        if self.step % 7 == 6 {
            self.half_a_change_of_mind().await?;
        }
        if self.step % 11 == 10 {
            self.renumber_part(1 + self.step / 11).await?;
        }
        Ok(())
    }

    /// Three tables in one transaction.
    async fn place_order(&mut self) -> Result<()> {
        let order = FIRST_NEW_ORDER + self.step;
        let customer = 1 + self.step % 100;
        self.session.exec("BEGIN").await?;
        let orders = touch(&mut self.session, &format!(
                "INSERT INTO orders VALUES ({order}, {customer}, 'O', {}.25, '1998-08-02', '1-URGENT', \
                 'Clerk#000000001', 0, 'placed in step {}')",
                100 + self.step % 900,
                self.step
            ))
            .await?;
        let lines = touch(
            &mut self.session,
            &format!(
                "INSERT INTO lineitem VALUES \
                 ({order}, 1, 1, 1, 3, 30.10, 0.05, 0.02, 'N', 'O', '1998-09-01', '1998-09-02', \
                  '1998-09-03', 'NONE', 'AIR', 'first'), \
                 ({order}, 2, 1, 2, 5, 70.15, 0.00, 0.08, 'N', 'O', '1998-09-01', '1998-09-02', \
                  '1998-09-03', 'COLLECT COD', 'RAIL', 'Zeile 2: Grüße, 漢字, 🐟')"
            ),
        )
        .await?;
        let customers = touch(
            &mut self.session,
            &format!(
                "UPDATE customer SET c_acctbal = c_acctbal - 1.01 WHERE c_custkey = {customer}"
            ),
        )
        .await?;
        self.commit().await?;
        self.done.add("orders", orders, 0, 0);
        self.done.add("lineitem", lines, 0, 0);
        self.done.add("customer", 0, customers, 0);
        Ok(())
    }

    /// A statement that is its own transaction.
    async fn touch_order(&mut self) -> Result<()> {
        let order = &self.orders[self.step as usize % self.orders.len()];
        let touched = touch(&mut self.session, &format!(
                "UPDATE orders SET o_totalprice = o_totalprice + 0.01, o_comment = 'touched in step {}' \
                 WHERE o_orderkey = {order}",
                self.step
            ))
            .await?;
        self.done.committed += 1;
        self.done.add("orders", 0, touched, 0);
        Ok(())
    }

    /// Children and parent go together.
    async fn cancel_order(&mut self, order: i64) -> Result<()> {
        self.session.exec("BEGIN").await?;
        let lines = touch(
            &mut self.session,
            &format!("DELETE FROM lineitem WHERE l_orderkey = {order}"),
        )
        .await?;
        let orders = touch(
            &mut self.session,
            &format!("DELETE FROM orders WHERE o_orderkey = {order}"),
        )
        .await?;
        self.commit().await?;
        self.done.add("lineitem", 0, 0, lines);
        self.done.add("orders", 0, 0, orders);
        Ok(())
    }

    /// Nothing of this may arrive.
    async fn change_of_mind(&mut self) -> Result<()> {
        self.session.exec("BEGIN").await?;
        touch(&mut self.session, &format!(
                "INSERT INTO orders VALUES ({}, 1, 'X', 0, '1998-08-02', '5-LOW', 'nobody', 0, 'rolled back')",
                -1 - self.step
            ))
            .await?;
        touch(&mut self.session, "DELETE FROM nation").await?;
        self.session.exec("ROLLBACK").await?;
        self.done.rolled_back += 1;
        Ok(())
    }

    /// The part before the savepoint arrives, the part after it does not.
    async fn half_a_change_of_mind(&mut self) -> Result<()> {
        self.session.exec("BEGIN").await?;
        let suppliers = touch(
            &mut self.session,
            "UPDATE supplier SET s_acctbal = s_acctbal + 0.50 WHERE s_suppkey = 1",
        )
        .await?;
        self.session.exec("SAVEPOINT halfway").await?;
        touch(&mut self.session, "DELETE FROM region").await?;
        self.session.exec("ROLLBACK TO SAVEPOINT halfway").await?;
        self.commit().await?;
        self.done.add("supplier", 0, suppliers, 0);
        Ok(())
    }

    /// A key that changes is a row that goes and a row that comes.
    async fn renumber_part(&mut self, part: i64) -> Result<()> {
        let parts = touch(
            &mut self.session,
            &format!(
                "UPDATE part SET p_partkey = p_partkey + {PART_KEY_STEP} WHERE p_partkey = {part}"
            ),
        )
        .await?;
        self.done.committed += 1;
        self.done.add("part", parts, 0, parts);
        Ok(())
    }

    async fn commit(&mut self) -> Result<()> {
        self.session.exec("COMMIT").await?;
        self.done.committed += 1;
        Ok(())
    }
}
