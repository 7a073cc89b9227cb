#!/usr/bin/env bash
# Unpacks a database server and everything that it links against, libc included,
# from Debian's signed archive into a directory of its own. Nothing is installed:
# no maintainer script runs, apt's and dpkg's state on this machine stay as they are.
#
#   unpack.sh APT_DIR SUITE DEST PACKAGE...
#
# APT_DIR keeps apt's private lists between calls. DEST appears only when it is
# complete, so that an interrupted run leaves nothing that looks usable.
set -euo pipefail

apt_dir=$1 suite=$2 dest=$3
shift 3
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
world=$apt_dir/$suite

mirror() {
  # The mirror that this Debian machine uses already; on other systems Debian's own.
  local found=
  if [ -r /etc/debian_version ] && grep -qs '^ID=debian' /etc/os-release; then
    found=$(sed -nE 's/^URIs:[[:space:]]*([^[:space:]]+).*/\1/p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)
    [ -n "$found" ] || found=$(sed -nE 's/^deb (\[[^]]*\] )?([^ ]+) .*/\2/p' /etc/apt/sources.list 2>/dev/null | head -n 1)
  fi
  echo "${found:-http://deb.debian.org/debian}"
}

# An apt whose every state lives below $world. Its dpkg status is empty, so it
# resolves the whole closure and takes nothing from the host for granted.
private_apt() {
  apt-get -qq \
    -o Dir::Etc::sourcelist="$world/sources.list" -o Dir::Etc::sourceparts=- \
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts="$world/none" \
    -o Dir::State="$world" -o Dir::State::lists="$world/lists" -o Dir::State::status="$world/status" \
    -o Dir::Cache="$world/cache" -o DPkg::Post-Invoke::= -o APT::Update::Post-Invoke::= \
    -o APT::Install-Recommends=false -o Acquire::Languages=none -o APT::Sandbox::User= \
    -o Acquire::Retries=3 "$@"
}

# Packages that only a full system needs: maintainer scripts' tools, services, perl.
unneeded='perl.*|libperl.*|lib.*-perl|debconf|libdebconfclient0|systemd|libsystemd-shared|adduser|passwd|login\.defs'
unneeded+='|base-passwd|init-system-helpers|lsb-base|sysvinit-utils|ucf|sensible-utils|locales|libc-l10n|procps|psmisc'
unneeded+='|lsof|rsync|socat|iproute2|netbase|ssl-cert|postgresql-common.*|postgresql-client-common|usrmerge|dpkg|tar|gawk'
unneeded+='|debianutils|libpam-modules.*|libsemanage.*|libsepol.*|libllvm.*|libz3-4|libgdbm.*|libbpf1|libxtables12'
unneeded+='|libcap2-bin|readline-common|galera-4|libicu-dev|openssl|gcc-.*-base'

[ -r "$keyring" ] || { echo "no $keyring: install the package debian-archive-keyring" >&2; exit 3; }
mkdir -p "$world/lists/partial" "$world/cache/archives/partial" "$world/none"
# Two servers of one suite share these lists, and apt does not wait for its own lock.
exec 9> "$world/unpacking"
flock 9
: >> "$world/status"
[ -s "$world/sources.list" ] || echo "deb [signed-by=$keyring] $(mirror) $suite main" > "$world/sources.list"
if [ -z "$(find "$world/lists" -name '*Packages*' -mtime -1 2>/dev/null | head -n 1)" ]; then
  private_apt update
fi

work=$dest.unpacking.$$
trap 'rm -rf "$work"' EXIT
rm -rf "$work"
mkdir -p "$work"/usr/{bin,sbin,lib,lib64} "$work/.archives"
# Older packages hold ./lib, newer ones ./usr/lib: both must land in one place.
for link in lib lib64 sbin; do ln -s "usr/$link" "$work/$link"; done

private_apt -s install "$@" | sed -nE 's/^Inst ([^ ]+) \(([^ ]+) .*/\1=\2/p' |
  grep -vE "^($unneeded)=" > "$work/MANIFEST"
[ -s "$work/MANIFEST" ] || { echo "apt cannot resolve $* in $suite" >&2; exit 1; }
mapfile -t packages < "$work/MANIFEST"
(cd "$work/.archives" && private_apt download "${packages[@]}")
for archive in "$work/.archives"/*.deb; do
  dpkg-deb --fsys-tarfile "$archive" |
    tar -x -C "$work" --no-same-owner --keep-directory-symlink --exclude='./usr/share/doc' --exclude='./usr/share/man' \
      --exclude='./usr/share/locale' --exclude='./usr/share/lintian' --exclude='./usr/share/bug'
done
rm -rf "$work/.archives"

# Programs run through the prefix's own loader and libc: a server from a newer
# release than the host's works, and so does gconv.
loader=$(cd "$work" && find usr/lib -path '*-linux-gnu/ld-linux-*.so.*' | head -n 1)
libraries=${loader%/*}
name_option=
# Loaders before glibc 2.33 cannot pass another argv[0].
# shellcheck disable=SC2016 # expanded by the wrapper
! grep -qa -e --argv0 "$work/$loader" || name_option=' --argv0 "$here/${0##*/}"'
is_elf() { [ -f "$1" ] && [ "$(head -c 4 "$1" | tail -c 3)" = ELF ]; }
wrap() { # wrap WRAPPER PROGRAM DIRECTORY_OF_WRAPPER, the latter two relative to the prefix
  cat > "$1" <<WRAPPER
#!/bin/sh
here=\${0%/*}; [ "\$here" != "\$0" ] || here=.; here=\$(cd "\$here" && pwd) || exit 127
root=\${here%/$3}
export GCONV_PATH="\$root/$libraries/gconv"; [ ! -d "\$root/usr/lib/locale" ] || export LOCPATH="\$root/usr/lib/locale"
exec "\$root/$loader" --library-path "\$root/$libraries"$name_option "\$root/$2" "\$@"
WRAPPER
  chmod 755 "$1"
}
mkdir -p "$work/bin"
for dir in usr/bin usr/sbin; do
  for program in "$work/$dir"/*; do
    ! is_elf "$program" || wrap "$work/bin/${program##*/}" "$dir/${program##*/}" bin
  done
done
# PostgreSQL's programs find share/ and each other beside themselves: wrapped in place.
for dir in "$work"/usr/lib/postgresql/*/bin; do
  [ -d "$dir" ] || continue
  inside=${dir#"$work"/}
  mkdir -p "$dir/.real"
  for program in "$dir"/*; do
    is_elf "$program" || continue
    mv "$program" "$dir/.real/"
    wrap "$program" "$inside/.real/${program##*/}" "$inside"
  done
done

mkdir -p "${dest%/*}"
rm -rf "$dest"
mv "$work" "$dest"
