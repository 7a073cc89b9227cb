# Short names for the commands that people and CI share; each is a script that also runs without just.

# list the recipes
default:
    @just --list

# the main job on real databases (see ./tests/demo/run --help)
demo *arguments:
    ./tests/demo/run {{arguments}}

# every test
test *arguments:
    ./tests/run {{arguments}}

# a hundred kills on every source, in every state: about a quarter of an hour
chaos kills="100":
    CAUDAL_CHAOS_KILLS={{kills}} cargo nextest run --release --workspace --profile long --test suite chaos --no-capture

# what CI runs
ci:
    bash .ci/run

# format the sources
fmt:
    cargo fmt --all

# formatting and lints
lint:
    cargo fmt --all --check
    cargo clippy --release --workspace --all-targets -- -D warnings

# the compose file, the Dockerfile and the shell scripts, with the linters that are installed
lint-deploy:
    ./deploy/lint

# licences, advisories and sources of the dependencies
deny:
    cargo deny check

# throughput beside the databases' own tools (see docs/benchmarks.md)
bench *arguments:
    ./tests/bench/run {{arguments}}
