"""The sandbox's merchants with systems of their own: the blocks that connect them, one each, and whose terminals."""

BLOCKS = """
[partners.parking-wuyuan]
name = "武原示范停车场(合成)"
adapter = "merchant_signed_http"
operations = ["open_barrier", "parking_fee", "query_status"]
timeout_ms = 3000
http = {{ base_url = "http://127.0.0.1:{merchants}/lot" }}
[partners.parking-wuyuan.merchant]
caller = "demo-merchant"
terminals = ["L-*"]
[partners.parking-wuyuan.keys]
sign = {{ kind = "hmac-sm3", file = "{keys}/lot.key" }}
partner = {{ kind = "hmac-sm3", file = "{keys}/lot.key" }}
[partners.parking-wuyuan.dialect]
party = "yikatong"
signature_form = "base64"
done = "0"
declines = {{ "4" = "not_found", "7" = "not_allowed" }}
paths = {{ open_barrier = "/open", parking_fee = "/fee", query_status = "/state" }}
headers = {{ party = "X-App", at = "X-When", nonce = "X-Once", signature = "X-Sign" }}
words = {{ entry = "1", exit = "2" }}
answers = {{ reference = "head.requestId", status = "result.code", fee_fen = "result.toPay" }}
[partners.parking-wuyuan.dialect.fields]
reference = "head.requestId"
at = "head.time"
terminal_id = "gate.no"
way = "gate.direction"
plate = "gate.plate"
ticket = "gate.ticket"
open_before = "gate.until"

[partners.hotel-haiyan]
name = "海盐示范宾馆(合成)"
adapter = "merchant_signed_http"
operations = ["hotel_check_in", "query_status"]
http = {{ base_url = "http://127.0.0.1:{merchants}/hotel" }}
merchant = {{ caller = "demo-merchant", terminals = ["H-*"] }}
[partners.hotel-haiyan.keys]
sign = {{ kind = "sm2", file = "{keys}/gateway.key" }}
partner = {{ kind = "sm2", file = "{keys}/hotel.pub" }}
[partners.hotel-haiyan.dialect]
party = "330424"
signed = "sm2"
done = "OK"
declines = {{ NO_SUCH = "not_found", CLOSED = "not_allowed" }}
paths = {{ hotel_check_in = "/guests", query_status = "/state" }}
answers = {{ reference = "serialNo", status = "state" }}
[partners.hotel-haiyan.dialect.fields]
reference = "serialNo"
at = ""
terminal_id = "desk"
booking = "bookingNo"
holder = "guestName"
rate_percent = "rate"
act_before = "until"

[partners.dining-nanbeihu]
name = "南北湖示范餐厅(合成)"
adapter = "merchant_signed_http"
operations = ["till_discount", "query_status"]
http = {{ base_url = "http://127.0.0.1:{merchants}/restaurant" }}
merchant = {{ caller = "demo-merchant", terminals = ["D-*"] }}
[partners.dining-nanbeihu.keys]
sign = {{ kind = "hmac-sm3", file = "{keys}/restaurant.key" }}
partner = {{ kind = "hmac-sm3", file = "{keys}/restaurant.key" }}
[partners.dining-nanbeihu.dialect]
party = "card-gateway"
signature_form = "base64"
amounts = "yuan"
done = "200"
declines = {{ "404" = "not_found", "409" = "not_allowed" }}
paths = {{ till_discount = "/bills", query_status = "/state" }}
headers = {{ party = "Order-From", at = "Order-Time", nonce = "Order-Nonce", signature = "Order-Sign" }}
answers = {{ reference = "order.id", status = "status" }}
[partners.dining-nanbeihu.dialect.fields]
reference = "order.id"
at = "order.time"
terminal_id = "till"
ticket = "bill.no"
amount_fen = "bill.total"
discount_fen = "bill.off"
act_before = "bill.until"
"""
"""To be filled in with the port (`merchants`) and the folder of the keys (`keys`)."""
