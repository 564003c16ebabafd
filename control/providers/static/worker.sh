# What happens on a machine: sh -c THIS worker ACTION FOLDER [ARGUMENT…], POSIX sh on Linux. FOLDER is made below the
# home folder if it is not there, and holds: claim (the instance that has the machine), agent.env, agent.sh, engine.sh,
# wanted (version of what was started last), *.pid, *.log and venv.
set -eu
umask 077
action=$1
mkdir -p "$HOME/$2"
cd "$HOME/$2"
shift 2

# When a process began, in ticks since boot, which with its id names it for good; nothing when it has ended.
began() {
    line=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) || return 0
    case $line in '' | Z* | X*) return 0 ;; esac
    set -- $line
    shift 19
    echo "$1"
}

alive() {
    [ -s "$1.pid" ] || return 1
    read -r pid at <"$1.pid"
    [ -n "$at" ] && [ "$(began "$pid")" = "$at" ]
}

# A session of its own: the end of the SSH connection does not reach it.
launch() {
    name=$1
    shift
    setsid "$@" >>"$name.log" 2>&1 </dev/null &
    echo "$! $(began $!)" >"$name.pid"
}

end_process() {
    waited=0
    while alive "$1" && [ $waited -lt 80 ]; do
        if [ $waited -eq 0 ]; then kill -TERM "-$pid" 2>/dev/null || :; kill -CONT "-$pid" 2>/dev/null || :; fi
        waited=$((waited + 1))
        sleep 0.1
    done
    if alive "$1"; then kill -KILL "-$pid" 2>/dev/null || :; fi
    rm -f "$1.pid"
}

has_systemd() { [ -d "${FLEETPULSE_SYSTEMD_FOLDER:-/run/systemd/system}" ]; }

# Root's services belong to the machine, others' to their user, who needs lingering to have them run without a login.
control_systemd() {
    if [ "$(id -u)" = 0 ]; then systemctl "$@"; else
        XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)} systemctl --user "$@"
    fi
}

units() {
    if [ "$(id -u)" = 0 ]; then set -- /etc/systemd/system; else set -- "$HOME/.config/systemd/user"; fi
    echo "${FLEETPULSE_SYSTEMD_UNITS:-$1}"
}

start_one() {
    if ! has_systemd; then
        end_process "$1"
        launch "$1" sh "./$1.sh"
        return
    fi
    mkdir -p "$(units)"
    cat >"$(units)/fleetpulse-$1.service" <<END
[Unit]
Description=fleetpulse $1
After=network-online.target

[Service]
ExecStart=/bin/sh "$PWD/$1.sh"
Restart=always
RestartSec=2

[Install]
WantedBy=default.target
END
    [ "$(id -u)" = 0 ] || loginctl enable-linger
    control_systemd daemon-reload
    control_systemd enable "fleetpulse-$1.service"
    control_systemd restart "fleetpulse-$1.service"
}

stop_one() {
    if has_systemd && [ -e "$(units)/fleetpulse-$1.service" ]; then
        control_systemd disable --now "fleetpulse-$1.service"
        rm -f "$(units)/fleetpulse-$1.service"
    fi
    end_process "$1"
}

runs() {
    if has_systemd; then control_systemd is-active --quiet "fleetpulse-$1.service"; else alive "$1"; fi
}

state() {
    if alive bring-up; then echo installing; return; fi
    if [ -s failed ]; then echo failed; return; fi
    for name in agent engine; do
        if [ -e "$name.sh" ] && ! runs "$name"; then echo stopped; return; fi
    done
    if [ -e agent.sh ]; then echo running; else echo stopped; fi
}

# install KEY PACKAGE PYTHON SECONDS: into an environment of its own, unless what KEY stands for is there already.
install() {
    if [ "$(cat installed 2>/dev/null)" = "$1" ]; then return; fi
    [ -x venv/bin/python ] || "$3" -m venv venv
    pip="timeout $4 venv/bin/python -m pip install --quiet --disable-pip-version-check"
    $pip --upgrade "$2"
    # A wheel that was copied may have changed without a new version.
    case $2 in ./*) $pip --force-reinstall --no-deps "$2" ;; esac
    echo "$1" >installed
}

stop_all() {
    end_process bring-up
    stop_one agent
    stop_one engine
}

case $action in
claim)
    # A link is made or not made: two who claim at once cannot both succeed.
    echo "$1" >"claim.$$"
    ln "claim.$$" claim 2>/dev/null || :
    rm -f "claim.$$"
    cat claim
    ;;
status)
    cat claim 2>/dev/null || echo
    state
    cat wanted 2>/dev/null || echo
    cat failed 2>/dev/null || :
    ;;
put)
    cat >"$1.new"
    mv "$1.new" "$1"
    ;;
start)
    # start VERSION ENGINE-OR-EMPTY [KEY PACKAGE PYTHON SECONDS]
    end_process bring-up
    rm -f failed
    : >bring-up.log
    echo "$1" >wanted
    if [ -z "$2" ]; then stop_one engine; rm -f engine.sh; fi
    shift
    launch bring-up sh ./worker.sh bring-up "${PWD#"$HOME"/}" "$@"
    ;;
bring-up)
    engine=$1
    shift
    trap '[ $? = 0 ] || { tail -n 1 bring-up.log; echo "it was ended"; } | head -n 1 >failed' EXIT
    if [ $# -gt 0 ]; then install "$@"; fi
    if [ -n "$engine" ]; then start_one engine; fi
    start_one agent
    ;;
stop)
    stop_all
    rm -f failed
    ;;
release)
    # The environment stays for the next instance; its settings, which hold secrets, do not.
    if [ "$(cat claim 2>/dev/null)" = "$1" ]; then
        stop_all
        rm -rf agent.env agent.sh engine.sh wanted failed worker.sh state
        rm -f claim
    fi
    ;;
*)
    echo "no such action: $action" >&2
    exit 2
    ;;
esac
