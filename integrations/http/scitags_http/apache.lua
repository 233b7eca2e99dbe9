-- Tells the agent of tagged requests. Whatever goes wrong here is nothing to the request.

local SECONDS = 0.2       -- that a request waits at most, where it waits
local LEFT_ALONE = 10     -- seconds after an agent has not answered in time
local WAY = { GET = "down", PUT = "up", POST = "up", PATCH = "up" }
local left_alone_until = 0
local number = 0

local function scitag(request)
    local given = request.headers_in["SciTag"] or request.headers_in["TransferHeaderSciTag"]
    if not given or given == "" then return nil end
    local value = given:match("^[1-9]%d%d?%d?%d?$") and tonumber(given) or 0
    return value >= 65 and value <= 65535 and value or 0  -- 0: one that cannot be read
end

-- What start and end have in common, or nil for a request that is not told of.
local function flow(request)
    local way = WAY[request.method]
    local tag = way and request.is_initial_req and scitag(request)
    if not tag or request.header_only then return nil end
    local environment = request.subprocess_env
    local server, port = environment["SCITAGS_SERVER"], environment["SCITAGS_PORT"]
    local client, client_port = environment["SCITAGS_CLIENT"], environment["SCITAGS_CLIENT_PORT"]
    if not (server and port and client and client_port) then return nil end
    local source, destination = { server, port }, { client, client_port }
    if way == "up" then source, destination = destination, source end
    number = number + 1
    return string.format(
        '"id":"%s.%d.%d","application":"apache","scitag":%d,"src":"%s","src_port":%d,"dst":"%s","dst_port":%d',
        client_port, request:clock(), number, tag, source[1], tonumber(source[2]), destination[1], tonumber(destination[2]))
end

local function send(message)
    local link = require("socket.unix").dgram()
    link:settimeout(0)
    link:sendto(message, AGENT)
    link:close()
end

-- Returns when the packets are marked, or in time.
local function send_and_wait(message)
    local now = os.time()
    if now < left_alone_until then return send(message) end
    local link = require("socket.unix").stream()
    link:settimeout(SECONDS)
    local head = "POST /v1/flows HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    local answer = link:connect(API) and link:send(head .. #message .. "\r\n\r\n" .. message) and link:receive("*l")
    link:close()
    if not answer then
        left_alone_until = now + LEFT_ALONE
        send(message)
    end
end

function begin(request)
    pcall(function()
        local told = flow(request)
        if not told then return end
        request.notes["scitags"] = told
        local message = '{"state":"start",' .. told .. "}"
        if API == "" then send(message) else send_and_wait(message) end
    end)
    return apache2.DECLINED
end

function finish(request)
    pcall(function()
        local told = request.notes["scitags"]
        if not told then return end
        send('{"state":"end",' .. told .. "}")  -- how much was sent mod_lua does not tell
    end)
    return apache2.DECLINED
end
