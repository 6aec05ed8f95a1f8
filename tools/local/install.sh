#!/usr/bin/env bash
# Installs what the local fleet needs; with --dev also what `make test` needs; with --bundle also what
# `make test-bundle` needs. Prints what it does.
# Debian/Ubuntu (apt, with sudo when not root) and macOS (Homebrew). Runs with macOS's own bash 3.2.
set -euo pipefail

say() { printf '  %s\n' "$*"; }
fail() { printf 'install: %s\n' "$*" >&2; exit 1; }
# Debian puts nginx into /usr/sbin, which only root's PATH includes.
have() { PATH="$PATH:/usr/sbin:/sbin:/opt/homebrew/bin:/usr/local/bin" command -v "$1" >/dev/null 2>&1; }
python_fits() { have python3 && python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))'; }

dev=false
bundle=false
case "${1:-}" in
    --dev) dev=true ;;
    --bundle) dev=true bundle=true ;;
    '') ;;
    *) fail "unknown argument $1 (known: --dev, --bundle)" ;;
esac

# Debian puts each version of PostgreSQL's server into its own directory, outside PATH.
have_postgres() { have postgres || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; }

apt_packages=()
brew_packages=()
services=()
need() { apt_packages+=("$1"); [ -z "$2" ] || brew_packages+=("$2"); }

if ! have redis-server; then need redis-server redis; services+=(redis-server); fi
if ! have nginx; then need nginx nginx; services+=(nginx); fi
# The tests start their own servers, so the system services are switched off below.
if $dev && ! have_postgres; then need postgresql postgresql; services+=(postgresql); fi
if $dev && ! have pgbouncer; then need pgbouncer pgbouncer; services+=(pgbouncer); fi
# One of the proxies in tests/forward_auth; the others are wheels (tools/requirements/proxies.txt).
if $dev && ! have haproxy; then need haproxy haproxy; services+=(haproxy); fi
if $dev; then have openssl || need openssl openssl; fi
# Tests that cut servers off from each other do so in a network namespace, which only Linux has.
if $dev && ! have ip && have apt-get; then need iproute2 ''; fi
if $dev && ! have nft && have apt-get; then need nftables ''; fi
# Counts what a session check costs (tests/cost). There is none for macOS.
if $dev && ! have valgrind; then
    if have apt-get; then need valgrind ''; else say "there is no valgrind here, so nobody will count what a session check costs"; fi
fi
# The pages are tested in a real browser. Without recommended packages it would come without a font.
if $dev && ! have chromedriver; then
    if grep -qs '^ID=ubuntu' /etc/os-release; then
        say "Ubuntu has Chromium as a snap only, so no browser will look at the pages. If you want that: sudo snap install"
        say "chromium, and a link named chromedriver, in PATH, to /snap/bin/chromium.chromedriver"
    else
        need chromium-driver chromedriver
        if have apt-get && ! have chromium && ! have google-chrome; then need chromium ''; fi
    fi
fi
if $dev && have apt-get && ! [ -d /usr/share/fonts/truetype/dejavu ]; then need fonts-dejavu-core ''; fi
# The demo uses it if it is installed; the tests of rules and dashboards need it.
if $bundle && ! have prometheus; then need prometheus prometheus; services+=(prometheus); fi
have curl || need curl curl
have cc || need build-essential ''
python_fits || need python3 python3
if $dev && ! python3 -c 'import ensurepip, venv' >/dev/null 2>&1; then need python3-venv python3; fi
have cargo || fail "no Rust toolchain: install one from https://rustup.rs and try again"

if [ ${#apt_packages[@]} -eq 0 ]; then
    say "nothing to install: redis-server, nginx, curl, cc, python3$($dev && echo ', PostgreSQL, pgbouncer, haproxy, openssl, ip, nft, valgrind, chromedriver')$($bundle && echo ', prometheus') are installed"
    exit 0
fi

if have apt-get; then
    sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        have sudo || fail "not root and no sudo: as root, run: apt-get install ${apt_packages[*]}"
        sudo=(sudo)
    fi
    say "installing with apt-get${sudo[*]:+ (with sudo)}: ${apt_packages[*]}"
    # ${a[@]+…}: before bash 4.4, an empty array counts as unset.
    ${sudo[@]+"${sudo[@]}"} apt-get update -qq
    ${sudo[@]+"${sudo[@]}"} env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${apt_packages[@]}"
    # The packages also start system services, which the fleet doesn't use.
    if [ ${#services[@]} -gt 0 ]; then
        say "switching off the system services of these packages: ${services[*]}"
        if [ -d /run/systemd/system ]; then
            ${sudo[@]+"${sudo[@]}"} systemctl disable --now "${services[@]}"
        else
            # In a container without systemd, init scripts have started them, unless a policy forbids that.
            for service in "${services[@]}"; do
                ${sudo[@]+"${sudo[@]}"} service "$service" stop >/dev/null 2>&1 || true
            done
        fi
    fi
elif have brew; then
    [ ${#brew_packages[@]} -gt 0 ] || fail "no C compiler: run xcode-select --install"
    say "installing with Homebrew: ${brew_packages[*]}"
    brew install --quiet "${brew_packages[@]}"
else
    fail "neither apt-get nor brew found; install these yourself: ${apt_packages[*]}"
fi

for name in redis-server nginx curl $($bundle && echo prometheus promtool); do
    have "$name" || fail "$name is still missing after the installation"
done
if $dev; then have haproxy || fail "haproxy is still missing after the installation"; fi
if $dev && [[ " ${apt_packages[*]} " == *' chromium-driver '* ]]; then
    have chromedriver || fail "chromedriver is still missing after the installation"
fi
if $dev; then have pgbouncer || fail "pgbouncer is still missing after the installation"; fi
if $dev; then have_postgres || fail "PostgreSQL's server is still missing after the installation"; fi
python_fits || fail "python3 is older than 3.9"
