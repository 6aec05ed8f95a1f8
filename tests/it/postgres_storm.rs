//! How many connections a fleet makes when PostgreSQL comes back.
use authfleet::metrics::SQL_ACQUIRE_TIMEOUTS;
use futures::future::join_all;

use crate::fleet::{Engine, Fleet, PASSWORD, PATIENTLY, Replica, within};
use crate::metrics::value;

/// Connections that each replica may have.
const POOL: f64 = 5.0;

/// Waits for a connection that took too long.
async fn given_up(replica: &Replica) -> f64 {
    value(replica, SQL_ACQUIRE_TIMEOUTS, &[("pool", "all")]).await.expect("known from the start")
}

/// All replicas notice at the same moment that PostgreSQL is back, while many clients wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_postgres_meets_no_storm_of_connections() {
    const REPLICAS: f64 = 4.0;
    let mut fleet = Fleet::builder().users_in(Engine::OwnPostgres).replicas(4).start().await;
    fleet[0].register("ada").await;
    let server = fleet.postgres.as_mut().expect("a server");
    server.settings.push("log_connections=on".to_owned());
    let all_given_up =
        async |fleet: &Fleet| join_all(fleet.replicas().iter().map(given_up)).await.into_iter().sum::<f64>();
    for _ in 0..3 {
        let cut_short = all_given_up(&fleet).await;
        let server = fleet.postgres.as_mut().expect("a server");
        server.kill();
        let lines = server.log().lines().count();
        let mut server = fleet.postgres.take().expect("a server");
        // Twice as many logins at a time as there are connections, from before the start until after it.
        let clients =
            join_all(fleet.replicas().iter().flat_map(|replica| (0..10).map(move |_| replica)).map(async |replica| {
                let mut successes = 0;
                within(PATIENTLY, "three logins", async || {
                    successes += usize::from(replica.try_login("ada", PASSWORD).send().await.status == 200);
                    successes == 3
                })
                .await;
            }));
        tokio::join!(clients, server.start());
        let log = server.log();
        // The test's own connections, made to see whether it is up, have another name.
        let is_ours =
            |line: &&str| line.contains("connection authorized") && line.contains("application_name=authfleet");
        let found: f64 = log.lines().skip(lines).filter(is_ours).map(|_| 1.0).sum();
        assert!(found > 0.0, "the log shows connections: {log}");
        fleet.postgres = Some(server);
        // On a busy machine an attempt may take too long. The server may have accepted it, and the replica closes what
        // it had, because the server seems to hang.
        let cut_short = all_given_up(&fleet).await - cut_short;
        println!("{REPLICAS} replicas with pools of {POOL} made {found} connections; given up: {cut_short}");
        assert!(found <= (REPLICAS + cut_short) * POOL, "{found}");
    }
}
