//! `sqlx::migrate!` embeds the migrations, which cargo doesn't see.
fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
