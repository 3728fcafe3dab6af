# Sends mails with smtplib as a JSON object on standard input says, and prints each reply as JSON.
import base64, json, smtplib, ssl, sys

order = json.load(sys.stdin)
source = (order["source"], 0) if order.get("source") else None
smtp = smtplib.SMTP(order["host"], order["port"], local_hostname="smtplib.test", timeout=50, source_address=source)
smtp.ehlo()
tls = None
if order.get("starttls"):
    smtp.starttls(context=ssl._create_unverified_context())
    smtp.ehlo()
    tls = smtp.sock.version()
results = []
for mail in order["mails"]:
    content = base64.b64decode(mail["content"])
    replies = [smtp.mail(mail["from"], mail.get("mail_options", []))]
    for recipient in mail["to"]:
        replies.append(smtp.rcpt(recipient, mail.get("rcpt_options", [])))
    if replies[0][0] != 250 or all(code != 250 for code, _ in replies[1:]):
        smtp.rset()
    elif mail.get("chunks"):
        # smtplib has no BDAT of its own.
        size = mail["chunks"]
        pieces = [content[at : at + size] for at in range(0, len(content), size)] or [b""]
        for number, piece in enumerate(pieces):
            last = " LAST" if number == len(pieces) - 1 else ""
            smtp.sock.sendall(f"BDAT {len(piece)}{last}\r\n".encode() + piece)
            reply = smtp.getreply()
        replies.append(reply)
    else:
        replies.append(smtp.data(content))
    results.append([[code, text.decode()] for code, text in replies])
# quit() forgets them.
features = dict(smtp.esmtp_features)
smtp.quit()
print(json.dumps({"features": features, "tls": tls, "results": results}))
