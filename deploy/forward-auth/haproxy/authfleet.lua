-- Into /etc/haproxy/: asks authfleet about a request. Sets txn.authfleet_status and txn.authfleet_location and, if the
-- request may pass, the identity headers; takes authfleet's cookies out of the request.
local SOCKET = "unix@/run/haproxy/authfleet.sock"
local IDENTITY = {"remote-user", "remote-email", "remote-user-id", "remote-groups", "remote-session-id"}
-- What authfleet reads besides the description.
local PASSED = {"cookie", "accept", "sec-fetch-mode", "x-requested-with", "user-agent"}
-- The application needs none of these.
local COOKIES = {["__Host-authfleet"] = true, ["__Host-authfleet-start"] = true, ["__Secure-session"] = true}

-- HAProxy numbers the values of a header from 0.
local function values_of(headers, name)
    local values = {}
    for at, value in pairs(headers[name] or {}) do
        values[at + 1] = value
    end
    return values
end

local function without_own_cookies(values)
    local kept = {}
    for pair in table.concat(values, ";"):gmatch("[^;]+") do
        local name = pair:match("^%s*([^=]-)%s*=")
        if not COOKIES[name] then
            table.insert(kept, (pair:gsub("^%s+", "")))
        end
    end
    return table.concat(kept, "; ")
end

local function authfleet(txn)
    local sent = txn.http:req_get_headers()
    local headers = {
        ["host"] = {"authfleet"},
        ["x-forwarded-method"] = {txn.sf:method()},
        ["x-forwarded-proto"] = {"https"},
        ["x-forwarded-host"] = values_of(sent, "host"),
        ["x-forwarded-uri"] = {txn.sf:pathq()},
        ["x-forwarded-for"] = {txn.sf:src()},
    }
    for _, name in ipairs(PASSED) do
        if sent[name] then
            headers[name] = values_of(sent, name)
        end
    end

    local answer = core.httpclient():get{url = "http://authfleet/auth/verify/forward", dst = SOCKET, headers = headers}
    if not answer or not answer.status or not answer.headers then
        return
    end
    if answer.status == 200 then
        for _, name in ipairs(IDENTITY) do
            local value = values_of(answer.headers, name)[1]
            -- authfleet always sends all five: without them this isn't its answer.
            if not value then
                return
            end
            txn.http:req_set_header(name, value)
        end
        local cookies = without_own_cookies(values_of(sent, "cookie"))
        if cookies == "" then
            txn.http:req_del_header("cookie")
        else
            txn.http:req_set_header("cookie", cookies)
        end
    end
    txn:set_var("txn.authfleet_location", values_of(answer.headers, "location")[1] or "")
    txn:set_var("txn.authfleet_status", tostring(answer.status))
end

core.register_action("authfleet", {"http-req"}, authfleet)
