// Sends mails by nodemailer, over one connection each. Reads an order as JSON from standard input and prints, as JSON, for each
// mail what the server said, or the error that nodemailer gives to its caller.
//
//   {"transport": {...}, "mails": [{...}]}      as nodemailer's documentation has them
'use strict';

const nodemailer = require('nodemailer');

async function main() {
    const order = JSON.parse(require('fs').readFileSync(0, 'utf8'));
    const transport = nodemailer.createTransport(order.transport);
    const results = [];
    for (const mail of order.mails) {
        try {
            const info = await transport.sendMail(mail);
            results.push({ accepted: info.accepted, rejected: info.rejected, response: info.response });
        } catch (error) {
            results.push({ code: error.code, command: error.command, status: error.responseCode, response: error.response });
        }
    }
    transport.close();
    console.log(JSON.stringify(results));
}

main();
